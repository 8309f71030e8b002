"""THE LOOP: from a slice to a better model. Imports lake and embeddings; no screen."""
