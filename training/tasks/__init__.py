"""Tasks: classification, segmentation and detection, with their losses and predictions."""
