"""Embedders: the networks that turn images into vectors, and their weights."""
