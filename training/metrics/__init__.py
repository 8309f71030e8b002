"""Metrics of models, with confidence intervals and paired tests."""
