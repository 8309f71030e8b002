"""From slices to batches: splits, sampling, augmentation and loading."""
