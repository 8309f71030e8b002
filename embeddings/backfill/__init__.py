"""Filling the vector columns: what is missing, in which order, now or continuously."""
