"""THE PROOF: figures beside peers, measured in one run by `python -m benchmarks NAME`. Nothing imports it."""
