"""Tasks: classification, segmentation and detection, and the networks for them."""
