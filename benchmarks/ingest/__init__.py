"""Bulk ingest and live ingest, under load and under kills."""
