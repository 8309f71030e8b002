"""The demo lake and its live stream."""
