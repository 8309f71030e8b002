"""THE RECORD: tables, ingest, labels, slices, SQL. Knows Arrow, Lance, DuckDB and Polars; no model, no screen.

    import lake
    lk = lake.open("solar.lake")
    lk.sql("SELECT label, count(*) FROM answers GROUP BY label")
    lk.frame("predictions").filter(pl.col("confidence") < 0.5).collect()
"""

from lake.store import Lake, create, open
from lake.version import VERSION as __version__

__all__ = ["Lake", "__version__", "create", "open"]
