"""What knows Lance's own file layout: fragments, data files, manifests."""
