"""Boxes, masks and polygons: conversions, sizes, overlaps and matching."""
