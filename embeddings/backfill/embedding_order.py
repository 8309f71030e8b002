"""The order in which waiting images are embedded.

oldest   by arrival: every image's wait is bounded by the backlog
newest   the latest first: new images are searchable within seconds even with a backlog, which comes after them
sampled  by a hash of the image and a seed: the embedded images are always an unbiased sample of those that arrived
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pyarrow as pa

from lake.storage.image_keys import mixed
from lake.storage.missing_vectors import WAITING

if TYPE_CHECKING:
    from lake.storage.missing_vectors import Gaps

Order = Literal["oldest", "newest", "sampled"]
ORDERS: tuple[Order, ...] = get_args(Order)


def waiting(gaps: Gaps, excluded: Collection[str] = ()) -> np.ndarray:
    """Which rows of `gaps` wait, bool; except images in `excluded`."""
    is_waiting: np.ndarray = gaps.state == WAITING
    is_waiting[gaps.rows_of(excluded)] = False
    return is_waiting


def first(
    gaps: Gaps, order: Order = "oldest", most: int | None = None, *, seed: int = 0, excluded: Collection[str] = ()
) -> list[str]:
    """The first `most` (None: all) distinct images that wait, in this order, except those in `excluded`.

    Rows of one commit have the same time; their place in the table decides.
    """
    rows = np.flatnonzero(waiting(gaps, excluded))
    if order == "sampled":
        rank = mixed(gaps.key[rows] + np.uint64(seed % 2**64))
    else:
        rank = gaps.arrived[rows] if order == "oldest" else -gaps.arrived[rows]
    tie = rows if order != "newest" else -rows
    count = len(rows) if most is None else most
    while True:
        candidates = np.arange(len(rows))
        if count < len(rows):
            candidates = np.flatnonzero(rank <= np.partition(rank, count)[count])
        ordered = rows[candidates[np.lexsort((tie[candidates], rank[candidates]))]]
        images = list(dict.fromkeys(gaps.image_id.take(pa.array(ordered)).to_pylist()))
        if len(candidates) == len(rows) or len(images) >= (most or 0):
            return images[:most]
        count *= 2  # several of the rows were of one image
