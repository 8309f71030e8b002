"""Metrics of predictions: accuracy, calibration, detection, and the dimensions they are split by."""
