"""SQL from anybody, in a process that can do nothing else: one SELECT, bounded in time, memory and size."""
