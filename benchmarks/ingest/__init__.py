"""Benchmarks of bulk ingest and live ingest, under load and under kills."""
