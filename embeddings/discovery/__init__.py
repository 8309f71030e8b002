"""Groups of predictions that fail more often than chance explains."""
