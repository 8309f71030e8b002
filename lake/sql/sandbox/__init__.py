"""Runs SQL from anybody in a confined process: one SELECT, limited in time, memory and size."""
