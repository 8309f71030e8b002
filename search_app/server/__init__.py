"""The server process and its child processes."""
