"""YOLO: `data.yaml`, `images/`, and for each image a text file in `labels/` with one line per instance."""
