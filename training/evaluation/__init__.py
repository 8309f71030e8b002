"""A model on every slice, compared with the one before, and the gate."""
