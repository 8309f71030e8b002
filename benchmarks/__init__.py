"""`python -m benchmarks NAME` measures lakeloop and its peers in one run; no package imports it."""
