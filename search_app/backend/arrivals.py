"""Counts what arrives now: predictions in the last minute, waiting events, the newest images.

Every open Overview page asks every few seconds, so it reads only if there is a new version, and then one column of the
table and a few rows. It knows nothing of HTTP or pages.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lake.spool.spool import Spool
    from lake.storage.store import Lake

RECENT_SECONDS = 60.0
IMAGES = 8
# Rows read for that many images: some are of the same image, some have no thumbnail.
_ROWS = 4 * IMAGES


class Arrivals:
    """The arrivals of one lake and, if the server accepts events, of its spool. Thread-safe."""

    def __init__(self, lake: Lake, spool: Spool | None) -> None:
        self._lake = lake
        self._spool = spool
        self._lock = threading.Lock()
        self._started = time.time()  # earlier rows do not count as arrivals
        self._predictions = _RecentRows("samples", "model is not null")
        self._verdicts = _RecentRows("reviews", "origin = 'customer'")
        self._images: list[dict[str, Any]] = []

    def look(self) -> dict[str, Any]:
        """`last_minute`: number of predictions, including those in the spool; `newest_seconds`: age of the latest, None
        if none came in the last minute; `verdicts`: of customers in the last minute; `waiting`: events in the spool;
        `images`: the newest first, at most 8, each with image_id, label and confidence, once they have a thumbnail.
        `version` changes with every commit of predictions or verdicts.
        """
        now = time.time()
        since = max(now - RECENT_SECONDS, self._started)
        # The spool first: between the two reads a prediction can only move from the spool to the lake.
        waiting, fresh, newest = 0, 0, None
        if self._spool is not None:
            waiting = self._spool.depth().events
            fresh, newest = self._spool.accepted(since)
        with self._lock:
            if self._predictions.update(self._lake, since):
                self._images = self._images_at(self._predictions.newest(_ROWS))
            self._verdicts.update(self._lake, since)
            stored, verdicts = self._predictions.times(since), len(self._verdicts.times(since))
            images = self._images if len(stored) else []
            version = version_of(self._predictions.version, self._verdicts.version)
        times = [float(stored[-1])] if len(stored) else []
        times += [newest] if newest is not None else []
        return {
            "last_minute": fresh + len(stored),
            "newest_seconds": round(max(0.0, now - max(times)), 1) if times else None,
            "verdicts": verdicts,
            "waiting": waiting,
            "images": images,
            "version": version,
        }

    def _images_at(self, addresses: list[int]) -> list[dict[str, Any]]:
        """The distinct images with a thumbnail in the rows at these addresses, in their order."""
        if not addresses:
            return []
        # Without stable row ids, which the lake's tables do not have, a row's id is its address.
        rows = self._lake.dataset("samples", self._predictions.version).to_table(
            ["image_id", "label", "confidence"],
            filter=f"_rowid in ({','.join(map(str, addresses))}) and image_status is null",
            with_row_id=True,
        )
        rank = {address: number for number, address in enumerate(addresses)}
        newest: dict[str, dict[str, Any]] = {}
        for row in sorted(rows.to_pylist(), key=lambda row: rank[row["_rowid"]]):
            del row["_rowid"]
            newest.setdefault(row["image_id"], row)
        return list(newest.values())[:IMAGES]


def version_of(predictions: int, reviews: int) -> str:
    """The versions of both tables as one text, to detect that a page is outdated."""
    return f"{predictions}.{reviews}"


class _RecentRows:
    """Arrival times and addresses of the recent rows of a table that pass a filter."""

    def __init__(self, table: str, filter: str) -> None:
        self.version = -1
        self._table = table
        self._filter = filter
        self._times = np.empty(0)  # seconds since 1970, ascending
        self._addresses = np.empty(0, np.uint64)

    def update(self, lake: Lake, since: float) -> bool:
        """Reads the rows after `since` if the table has a new version; returns whether it had."""
        dataset = lake.dataset(self._table)
        if dataset.version == self.version:
            return False
        moment = dt.datetime.fromtimestamp(since, dt.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        condition = f"ingested_at > timestamp '{moment}' and {self._filter}"
        rows = dataset.scanner(columns=["ingested_at"], filter=condition, with_row_address=True).to_table()
        times, addresses = np.asarray(rows["ingested_at"].cast("int64")) / 1e6, np.asarray(rows["_rowaddr"])
        order = np.lexsort((addresses, times))
        self.version, self._times, self._addresses = dataset.version, times[order], addresses[order]
        return True

    def times(self, since: float) -> np.ndarray:
        """The arrival times after `since`, ascending."""
        times: np.ndarray = self._times[np.searchsorted(self._times, since, "right") :]
        return times

    def newest(self, most: int) -> list[int]:
        """Row addresses, the newest first."""
        addresses: list[int] = self._addresses[: -most - 1 : -1].tolist()
        return addresses
