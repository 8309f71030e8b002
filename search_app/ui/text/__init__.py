"""Text on the screen: numbers, escaping, empty states."""
