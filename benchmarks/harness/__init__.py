"""The harness of all benchmarks: rounds, contender processes, facts of the machine, data, peers."""
