"""Benchmarks of training, the gate, serving and the whole loop."""
