"""Benchmarks: `python -m benchmarks NAME` measures lakeloop and its peers in one run. No package imports them."""
