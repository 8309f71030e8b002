"""Boxes, masks and polygons: conversions, sizes and overlaps."""
