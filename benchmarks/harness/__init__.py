"""Rounds of contenders in processes of their own, the machine, the data, the peers."""
