"""Keeps the key indexes of a table complete: rows outside them are scanned by every look-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lance

    from lake.storage.store import Lake


def complete(lake: Lake, name: str, *, thorough: bool = True) -> bool:
    """Brings every row of the table `name` into its indexes. Returns whether it wrote anything.

    Unless `thorough`, it does so only when a 32nd of the rows (at least 4,096) are missing: an index is always
    rewritten whole, so doing it more often would write more than the rows themselves.
    """
    dataset = lake.dataset(name)
    rows = dataset.count_rows()
    missing = max((unindexed(dataset, index.name) for index in dataset.describe_indices()), default=0)
    if not missing or (not thorough and missing < max(4_096, rows // 32)):
        return False
    lake.index(name)
    return True


def unindexed(dataset: lance.LanceDataset, index: str) -> int:
    """The number of rows that the index does not cover."""
    return int(dataset.stats.index_stats(index).get("num_unindexed_rows") or 0)
