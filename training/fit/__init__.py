"""Training: the loop, distributed processes, checkpoints, early stopping, tuning."""
