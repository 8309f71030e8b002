"""From slices to batches: splits, sampling, augmentation, loading."""
