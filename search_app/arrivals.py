"""What arrives at this moment: how many answers in the last minute, what waits, the newest images.

Asked every few seconds by every open Overview, so it reads only what has changed since it was asked last: one column
of predictions when there is a new version, the rows of a few images when one of them is new. It knows nothing of HTTP
or screens.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lake.spool import Spool
    from lake.store import Lake

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
        self._version = -1
        self._times = np.empty(0)  # of the answers that came lately: seconds since 1970, ascending
        self._images: list[dict[str, Any]] = []

    def look(self) -> dict[str, Any]:
        """`last_minute`: answers, those in the spool included; `newest_seconds`: how long ago the latest came, None
        when none came lately; `waiting`: events in the spool; `images`: the newest first, at most 8, each with
        image_id, label and confidence. An image is among them once its thumbnail can be had. `version`: the newest of
        predictions.
        """
        now = time.time()
        since = max(now - LATELY_SECONDS, self._began)
        # The spool first: between the two looks an answer can only move from it to the lake.
        waiting, fresh, newest = 0, 0, None
        if self._spool is not None:
            waiting = self._spool.depth().events
            fresh, newest = self._spool.accepted(since)
        with self._lock:
            self._follow(since)
            stored = self._times[np.searchsorted(self._times, since, "right") :]
            images, version = self._images if len(stored) else [], self._version
        moments = [float(stored[-1])] if len(stored) else []
        moments += [newest] if newest is not None else []
        return {
            "last_minute": fresh + len(stored),
            "newest_seconds": round(max(0.0, now - max(moments)), 1) if moments else None,
            "waiting": waiting,
            "images": images,
            "version": version,
        }

    def _follow(self, since: float) -> None:
        dataset = self._lake.dataset("predictions")
        if dataset.version == self._version:
            return
        moment = dt.datetime.fromtimestamp(since, dt.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        came = dataset.scanner(
            columns=["ingested_at"],
            filter=f"ingested_at > timestamp '{moment}' and model is not null",
            with_row_address=True,
        ).to_table()
        times = np.asarray(came["ingested_at"].cast("int64")) / 1e6
        address = np.asarray(came["_rowaddr"])
        order = np.lexsort((address, times))
        self._times = times[order]
        self._images = self._faces(dataset, address[order][: -_ROWS - 1 : -1].tolist()) if len(order) else []
        self._version = dataset.version

    def _faces(self, dataset: Any, addresses: list[int]) -> list[dict[str, Any]]:
        """The distinct images with a picture at these addresses, in their order."""
        # Without stable row ids, which the lake's tables do not have, a row's id is its address.
        rows = dataset.to_table(
            ["image_id", "label", "confidence"],
            filter=f"_rowid in ({','.join(map(str, addresses))}) and image_status is null",
            with_row_id=True,
        ).to_pylist()
        place = {address: number for number, address in enumerate(addresses)}
        rows.sort(key=lambda row: place[row.pop("_rowid")])
        newest: dict[str, dict[str, Any]] = {}
        for row in rows:
            newest.setdefault(row["image_id"], row)
        return list(newest.values())[:IMAGES]
