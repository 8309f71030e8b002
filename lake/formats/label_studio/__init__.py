"""Label Studio: writes a task file with pre-labels, reads the finished annotations."""
