"""What keeps a lake quick, small, whole and recoverable. None of it is in the way of a read or a write."""
