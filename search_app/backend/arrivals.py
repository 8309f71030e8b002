"""What arrives at this moment: how many answers in the last minute, what waits, the newest images.

Asked every few seconds by every open Overview, so it reads only when there is a new version, and then one column of
the table and a few rows. It knows nothing of HTTP or screens.
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

LATELY_SECONDS = 60.0
IMAGES = 8
# Rows looked at for so many images: some are of the same image, some have no picture.
_ROWS = 4 * IMAGES


class Arrivals:
    """The news of one lake and, when the server takes events in, of its spool. Safe between threads."""

    def __init__(self, lake: Lake, spool: Spool | None) -> None:
        self._lake = lake
        self._spool = spool
        self._lock = threading.Lock()
        self._began = time.time()  # what was there before did not arrive
        self._answers = _Lately("predictions", "model is not null")
        self._verdicts = _Lately("reviews", "origin = 'customer'")
        self._images: list[dict[str, Any]] = []

    def look(self) -> dict[str, Any]:
        """`last_minute`: answers, those in the spool included; `newest_seconds`: how long ago the latest came, None
        when none came lately; `verdicts`: of customers in the last minute; `waiting`: events in the spool; `images`:
        the newest first, at most 8, each with image_id, label and confidence. An image is among them once its
        thumbnail can be had. `version` changes with every commit of answers or verdicts.
        """
        now = time.time()
        since = max(now - LATELY_SECONDS, self._began)
        # The spool first: between the two looks an answer can only move from it to the lake.
        waiting, fresh, newest = 0, 0, None
        if self._spool is not None:
            waiting = self._spool.depth().events
            fresh, newest = self._spool.accepted(since)
        with self._lock:
            if self._answers.follow(self._lake, since):
                self._images = self._faces(self._answers.newest(_ROWS))
            self._verdicts.follow(self._lake, since)
            stored, verdicts = self._answers.times(since), len(self._verdicts.times(since))
            images = self._images if len(stored) else []
            version = version_of(self._answers.version, self._verdicts.version)
        moments = [float(stored[-1])] if len(stored) else []
        moments += [newest] if newest is not None else []
        return {
            "last_minute": fresh + len(stored),
            "newest_seconds": round(max(0.0, now - max(moments)), 1) if moments else None,
            "verdicts": verdicts,
            "waiting": waiting,
            "images": images,
            "version": version,
        }

    def _faces(self, addresses: list[int]) -> list[dict[str, Any]]:
        """The distinct images with a picture at these addresses, in their order."""
        if not addresses:
            return []
        # Without stable row ids, which the lake's tables do not have, a row's id is its address.
        rows = self._lake.dataset("predictions", self._answers.version).to_table(
            ["image_id", "label", "confidence"],
            filter=f"_rowid in ({','.join(map(str, addresses))}) and image_status is null",
            with_row_id=True,
        )
        place = {address: number for number, address in enumerate(addresses)}
        newest: dict[str, dict[str, Any]] = {}
        for row in sorted(rows.to_pylist(), key=lambda row: place[row["_rowid"]]):
            del row["_rowid"]
            newest.setdefault(row["image_id"], row)
        return list(newest.values())[:IMAGES]


def version_of(predictions: int, reviews: int) -> str:
    """The state of both tables as one text, to tell whether a page is behind."""
    return f"{predictions}.{reviews}"


class _Lately:
    """When the rows of one table that pass a filter came, of those that came of late."""

    def __init__(self, table: str, filter: str) -> None:
        self.version = -1
        self._table = table
        self._filter = filter
        self._times = np.empty(0)  # seconds since 1970, ascending
        self._addresses = np.empty(0, np.uint64)

    def follow(self, lake: Lake, since: float) -> bool:
        """Reads what came after `since`, when the table has a new version; whether it had."""
        dataset = lake.dataset(self._table)
        if dataset.version == self.version:
            return False
        moment = dt.datetime.fromtimestamp(since, dt.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        condition = f"ingested_at > timestamp '{moment}' and {self._filter}"
        came = dataset.scanner(columns=["ingested_at"], filter=condition, with_row_address=True).to_table()
        times, addresses = np.asarray(came["ingested_at"].cast("int64")) / 1e6, np.asarray(came["_rowaddr"])
        order = np.lexsort((addresses, times))
        self.version, self._times, self._addresses = dataset.version, times[order], addresses[order]
        return True

    def times(self, since: float) -> np.ndarray:
        found: np.ndarray = self._times[np.searchsorted(self._times, since, "right") :]
        return found

    def newest(self, most: int) -> list[int]:
        """Row addresses, the newest first."""
        found: list[int] = self._addresses[: -most - 1 : -1].tolist()
        return found
