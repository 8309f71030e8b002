"""Networks by name: backbones, segmentation networks and detectors, and their pretrained weights."""
