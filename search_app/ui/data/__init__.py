"""What the pages ask the lake, cached."""
