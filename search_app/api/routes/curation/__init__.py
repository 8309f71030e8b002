"""Routes that look into the lake and collect what matters: slices, labels, clusters, active searches, metrics."""
