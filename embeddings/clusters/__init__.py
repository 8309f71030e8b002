"""Drill-down trees of clusters: fitting, storing, comparing, and assigning new images."""
