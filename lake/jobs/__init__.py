"""Jobs: the record of long work, and the heartbeats of what runs. It does not know what the work is."""
