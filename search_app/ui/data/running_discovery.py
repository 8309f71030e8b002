"""Slice discovery in the background: one at a time, cached while the tables it read stay the same.

A page calls `of` repeatedly. The returned object has the progress and, at the end, the result or an error.
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
_MOST_CACHED = 24


class RunningDiscovery:
    """One discovery. `share`: progress, 0 to 1, with its `stage`; at the end `result`, or `error` with the reason."""

    def __init__(self) -> None:
        self.share = 0.0
        self.stage = "waiting"
        self.result: Discovery | None = None
        self.error: str | None = None
        self._ended = threading.Event()

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits for its end, at most this long; returns whether it ended."""
        return self._ended.wait(seconds)

    def run(self, lake: Lake, options: dict[str, Any]) -> None:
        """Does the work. Raises nothing: an error is kept in `error`."""
        from embeddings.discovery.discovery import discover

        try:
            self.result = discover(lake, progress=self._report, **options)
        except LakeloopError as error:
            self.error = str(error)
        except Exception:
            _log.exception("slice discovery failed")
            self.error = "Slice discovery failed. The server's log has the reason."
        finally:
            self._ended.set()

    def _report(self, share: float, stage: str) -> None:
        self.share, self.stage = share, stage


_workers = ThreadPoolExecutor(1, thread_name_prefix="discovery")
_known: OrderedDict[tuple[Any, ...], RunningDiscovery] = OrderedDict()
_lock = threading.Lock()


def of(lake: Lake, stamp: tuple[int, ...], **options: Any) -> RunningDiscovery:
    """The discovery for this state of the lake, started unless it is cached. `options`: as of
    `embeddings.discovery.discovery.discover`.
    """
    key = (lake.uri, stamp, *sorted(options.items()))
    with _lock:
        if key in _known:
            _known.move_to_end(key)
            return _known[key]
        started = _known[key] = RunningDiscovery()
        while len(_known) > _MOST_CACHED:
            _known.popitem(last=False)
    _workers.submit(started.run, lake, options)
    return started
