"""Parts that several pages show: image grid, report, map, scope bar, empty states."""
