"""Slice discovery beside the page: one at a time, remembered for as long as the tables it read are the same.

A page asks `of` again and again; what it gets says how far it is, and at the end what was found or why nothing was.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lake.errors import LakeloopError

if TYPE_CHECKING:
    from embeddings.discovery.findings import Discovery
    from lake.storage.store import Lake

_log = logging.getLogger(__name__)
_KEPT = 24


class Discovering:
    """One discovery. `share`: how much is done, 0 to 1; at the end it is `found`, or `error` says why not."""

    def __init__(self) -> None:
        self.share = 0.0
        self.stage = "waiting"
        self.found: Discovery | None = None
        self.error: str | None = None
        self._ended = threading.Event()

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def wait(self, seconds: float) -> bool:
        """Returns at its end, or after this long; whether it ended."""
        return self._ended.wait(seconds)

    def run(self, lake: Lake, how: dict[str, Any]) -> None:
        """Does the work; returns when it is done, whatever happens."""
        from embeddings.discovery.discovery import discover

        try:
            self.found = discover(lake, progress=self._tell, **how)
        except LakeloopError as error:
            self.error = str(error)
        except Exception:
            _log.exception("slice discovery failed")
            self.error = "Slice discovery failed. The reason stands in the terminal where the server runs."
        finally:
            self._ended.set()

    def _tell(self, share: float, stage: str) -> None:
        self.share, self.stage = share, stage


_workers = ThreadPoolExecutor(1, thread_name_prefix="discovery")
_known: OrderedDict[tuple[Any, ...], Discovering] = OrderedDict()
_lock = threading.Lock()


def of(lake: Lake, stamp: tuple[int, ...], **how: Any) -> Discovering:
    """The discovery of this lake at this state, begun unless it is known. `how` as `embeddings.discovery.discover`."""
    key = (lake.uri, stamp, *sorted(how.items()))
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
        begun = _known[key] = Discovering()
        while len(_known) > _KEPT:
            _known.popitem(last=False)
    _workers.submit(begun.run, lake, how)
    return begun
