"""Whose turn is first when images wait for their vectors: the stated policy for lag.

oldest   by arrival: nothing starves, every image's wait is bounded by the backlog
newest   the latest first: what arrives now is searchable within seconds even far behind; the backlog comes after
sampled  by a hash of the image and a seed: at every moment what is embedded is an unbiased sample of what arrived
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


def waiting(gaps: Gaps, without: Collection[str] = ()) -> np.ndarray:
    """Which rows of `gaps` wait, bool; images in `without` do not."""
    which: np.ndarray = gaps.state == WAITING
    which[gaps.rows_of(without)] = False
    return which


def first(
    gaps: Gaps, order: Order = "oldest", most: int | None = None, *, seed: int = 0, without: Collection[str] = ()
) -> list[str]:
    """The first `most` (None: all) distinct images that wait, in this order, but for those in `without`.

    Rows that arrived in one commit have one time; among them the place in the table counts.
    """
    rows = np.flatnonzero(waiting(gaps, without))
    if order == "sampled":
        rank = mixed(gaps.key[rows] + np.uint64(seed % 2**64))
    else:
        rank = gaps.arrived[rows] if order == "oldest" else -gaps.arrived[rows]
    place = rows if order != "newest" else -rows
    reach = len(rows) if most is None else most
    while True:
        near = np.arange(len(rows))
        if reach < len(rows):
            near = np.flatnonzero(rank <= np.partition(rank, reach)[reach])
        turn = rows[near[np.lexsort((place[near], rank[near]))]]
        images = list(dict.fromkeys(gaps.image_id.take(pa.array(turn)).to_pylist()))
        if len(near) == len(rows) or len(images) >= (most or 0):
            return images[:most]
        reach *= 2  # several rows of one image took each other's turn
