"""Commands that work on vectors: search, clusters, maps."""
