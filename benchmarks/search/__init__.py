"""Search, clusters, near-duplicates, discovery, active search and SQL."""
