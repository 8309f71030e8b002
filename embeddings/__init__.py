"""THE GEOMETRY: embedders, backfill, search by example, clustering and drill-down. Imports lake, nothing above."""
