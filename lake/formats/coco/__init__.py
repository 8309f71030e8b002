"""COCO: one JSON document of images, categories and annotations, and lists of results with scores."""
