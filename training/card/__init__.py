"""Model cards, rendered from the record."""
