"""What the roles of slices are called on the screen."""

from __future__ import annotations

# By role; "" is a slice without one.
ROLES = {"": "no role", "train": "for training", "evaluation": "for evaluation", "regression": "for regression"}
