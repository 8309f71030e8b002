"""From a slice to a better model: training, evaluation, gate, registry, cards. Imports lake and embeddings."""
