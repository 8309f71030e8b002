"""Jobs as processes: the kinds of long work, the workers that do it, and the supervisor that starts them."""
