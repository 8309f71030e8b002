"""Search by example, similarity inside SQL, and active search."""
