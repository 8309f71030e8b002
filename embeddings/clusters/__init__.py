"""Clusters and drill-down trees, maps, outliers, and drift of new images."""
