"""Image files: headers, decoding to pixels, and the worker processes that decode."""
