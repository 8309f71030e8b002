"""Routes of the loop: training runs, evaluations, gates, and the versions of models."""
