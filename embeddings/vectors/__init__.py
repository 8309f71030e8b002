"""Vectors as matrices: columns to numpy, neighbours, principal components, whitening."""
