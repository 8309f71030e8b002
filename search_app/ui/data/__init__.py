"""What the pages read from the lake, cached."""
