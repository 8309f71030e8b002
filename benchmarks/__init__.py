"""THE PROOF: figures beside peers, measured in one run. `python -m benchmarks NAME`; no package imports this one."""
