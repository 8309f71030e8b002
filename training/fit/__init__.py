"""The training loop and what goes round it."""
