"""Near-duplicates, and the guard that keeps them out of training."""
