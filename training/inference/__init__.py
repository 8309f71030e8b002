"""Predictions of registered models: over HTTP, in batches, in shadow."""
