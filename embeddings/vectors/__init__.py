"""Numerical methods on vectors: nearest neighbours, principal components, whitening."""
