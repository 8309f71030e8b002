"""Bulk ingest of folders, prediction logs and data sets."""
