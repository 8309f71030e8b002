"""Metrics of models, with intervals and paired tests."""
