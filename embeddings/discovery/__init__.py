"""What deserves a look first: groups of predictions that fail, and images far from all others."""
