"""Image files: headers, decoding to pixels, and worker processes."""
