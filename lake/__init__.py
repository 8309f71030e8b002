"""The lake: tables, ingest, labels, slices, SQL. Knows Arrow, Lance, DuckDB and Polars; no model, no screen.

import lake
lk = lake.open("solar.lake")
lk.sql("SELECT label, count(*) FROM predictions GROUP BY label")
lk.frame("samples").filter(pl.col("confidence") < 0.5).collect()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lake.version import VERSION as __version__

if TYPE_CHECKING:
    from lake.open_lake import OpenLake, create, open
    from lake.storage.store import Lake

__all__ = ["Lake", "OpenLake", "__version__", "create", "open"]


def __getattr__(name: str) -> Any:
    # Late, so that `lakeloop --help` and a client's process do not pay for Arrow.
    if name in __all__:
        from lake import open_lake

        return getattr(open_lake, name)
    raise AttributeError(f"module 'lake' has no attribute {name!r}")
