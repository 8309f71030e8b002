"""Commands that work on the lake: data, SQL, slices, upkeep."""
