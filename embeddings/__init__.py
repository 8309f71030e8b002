"""Vectors of images: embedders, backfill, search by example, clusters, maps. Imports lake only."""
