"""Benchmarks of search, clusters, near-duplicates, discovery, active search and SQL."""
