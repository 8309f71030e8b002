"""What the routes share: the lake, its spool, admission, and `store`, the only way in for events.

It hands events to the spool's thread and awaits their outcomes. The routes build the responses.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lake.errors import CouldNot
from lake.images.image_header import upright_sizes
from lake.spool.committer import Entry, RepeatedKey
from search_app.api.admission import Admission, IngestLimits, Slots
from search_app.api.problems import Problem

if TYPE_CHECKING:
    from lake.open_lake import OpenLake
    from lake.spool.events import Event
    from lake.spool.journal import Outcome
    from lake.spool.spool import Spool

_log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
# Images known to be stored, so that naming one again costs no look-up.
KNOWN_IMAGES = 100_000
# One worker process decodes them, one at a time; each that waits holds a thread.
MOST_IMAGES = 8
# Leak checks, clusterings and the like: each may take a core and hundreds of megabytes.
MOST_LONG_WORK = 2


class Service:
    """One lake behind one server. Without a spool it only reads."""

    def __init__(self, lake: OpenLake, spool: Spool | None, limits: IngestLimits | None = None) -> None:
        self.lake = lake
        self.spool = spool
        self.admission = Admission(limits or IngestLimits())
        self.images = Slots(MOST_IMAGES, "images from outside")
        self.long_work = Slots(MOST_LONG_WORK, "requests that take long")
        self.promoted = lake.promoted()
        self.stopping = False
        self._known_images: dict[str, None] = dict.fromkeys(spool.images()) if spool else {}
        self._in_flight: dict[str, bytes] = {}

    def writable(self) -> Spool:
        """The spool. Raises CouldNot when this server has none."""
        if self.spool is None:
            raise CouldNot("this server only reads: start it with --spool FOLDER on a local disk to accept events")
        return self.spool

    async def watch(self) -> None:
        """Keeps admission informed until cancelled."""
        spool = self.spool
        while spool is not None:
            try:
                depth, free = await asyncio.gather(asyncio.to_thread(spool.depth), asyncio.to_thread(spool.free_bytes))
                self.admission.look(depth, free)
            except (sqlite3.Error, OSError) as error:  # the last state stays; the next look may succeed
                _log.warning("the state of the spool could not be read: %s", error)
            await asyncio.sleep(LOOK_SECONDS)

    async def store(
        self, events: Sequence[Event], facts: Any, key: str | None = None, digest: bytes = b""
    ) -> tuple[Any, list[Outcome]]:
        """Stores the events; returns `facts` and the outcome of each event once they are safe on disk.

        `facts` is what else the response says, as JSON can hold it. With an Idempotency-Key, facts and outcomes are
        remembered in the same commit, and a repeat of the request (equal `digest`) gets those of the first time.
        Raises Problem: 422 for another request under the key, 409 while the first is in flight; and whatever kept the
        events from the disk.
        """
        if key is None:
            return facts, await self._commit(Entry(events, _notify)) if events else []
        running = self._in_flight.get(key)
        if running is None:
            receipt = self.writable().receipt(key)
            if receipt is None:
                self._in_flight[key] = digest
                try:
                    return facts, await self._commit(Entry(events, _notify, key, digest, json.dumps(facts)))
                except RepeatedKey as repeated:
                    receipt = repeated.receipt
                finally:
                    del self._in_flight[key]
            if receipt.digest == digest:
                return json.loads(receipt.facts), receipt.outcomes
        elif running == digest:
            raise Problem(409, "in_flight", "a request with this Idempotency-Key is being worked on; try again", 1)
        raise Problem(422, "other_request", "this Idempotency-Key was used for another request")

    async def _commit(self, entry: Entry) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Outcome]] = loop.create_future()
        entry.waiter = (loop, future)
        self.writable().submit(entry)
        outcomes = await future
        for event in entry.events:
            if event.data is not None:
                self._remember(event.image_id)
        return outcomes

    async def unknown_images(self, image_ids: Sequence[str]) -> set[str]:
        """The ids among these of images that are neither in the lake nor in the spool."""
        new = [i for i in image_ids if i not in self._known_images]
        if not new:
            return set()
        missing = await asyncio.to_thread(self._unknown_images, new)
        for image_id in new:
            if image_id not in missing:
                self._remember(image_id)
        return missing

    def waiting_image(self, image_id: str) -> bytes | None:
        """The bytes of an image that is in the spool and not in the lake yet."""
        return self.spool.image(image_id) if self.spool is not None and image_id in self._known_images else None

    def image_sizes(self, image_ids: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
        """By image_id, the sizes (width, height) that an upright image may have; only of those whose bytes are kept."""
        sizes = {}
        for image_id in image_ids:
            data = self.waiting_image(image_id)
            if data is not None:
                sizes[image_id] = upright_sizes(data)
        rest = [image_id for image_id in image_ids if image_id not in sizes]
        rows = self.lake.look_up("images", ["image_id", "width", "height"], "image_id", rest).to_pylist()
        return sizes | {row["image_id"]: [(row["width"], row["height"])] for row in rows if row["width"]}

    def image_of(self, prediction_id: str) -> str | None:
        """The image of a prediction, from its acknowledgement on; None if the prediction is unknown."""
        image_id = self.spool.image_of(prediction_id) if self.spool is not None else None
        if image_id is None:
            rows = self.lake.look_up("samples", ["image_id"], "prediction_id", [prediction_id])
            image_id = rows["image_id"][0].as_py() if rows.num_rows else None
        return image_id

    def _unknown_images(self, image_ids: Sequence[str]) -> set[str]:
        """Looks in the spool, for uploads through other processes, and in the lake."""
        spool = self.spool
        rest = [i for i in image_ids if spool is None or spool.event("image", i) is None]
        return set(rest) - self.lake.known("images", "image_id", rest)

    def _remember(self, image_id: str) -> None:
        known = self._known_images
        while len(known) >= KNOWN_IMAGES:
            del known[next(iter(known))]
        known[image_id] = None


def _notify(entries: list[Entry]) -> None:
    """Called on the spool's thread: hands the results to the event loop, once for all the requests of a commit."""
    loop = entries[0].waiter[0]
    try:
        loop.call_soon_threadsafe(_settle, entries)
    except RuntimeError:  # the loop is closed: no request waits any more
        return


def _settle(entries: list[Entry]) -> None:
    for entry in entries:
        future = entry.waiter[1]
        if future.done():  # the client went away
            continue
        if entry.error is None:
            future.set_result(entry.outcomes)
        else:
            future.set_exception(entry.error)
