"""Evaluates runs on slices, compares them, and decides with the gate whether one may replace another."""
