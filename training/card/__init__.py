"""Model cards, rendered from what was recorded."""
