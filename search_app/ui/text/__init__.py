"""Text on the screen: numbers, escaped Markdown, commands, names of roles."""
