"""Maps: images placed in two dimensions, for looking at."""
