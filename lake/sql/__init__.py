"""SQL and filters over the lake, in this process or in a sandbox."""
