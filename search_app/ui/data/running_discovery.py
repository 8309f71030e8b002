"""Slice discovery while a page waits: in this process for few predictions, as a job for many.

A page calls `of` repeatedly. The returned object has the progress and, at the end, the result or an error. It is the
same while the tables that were read stay the same; a job is found again in any browser and after a restart.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from lake.errors import LakeloopError
from lake.jobs import current

if TYPE_CHECKING:
    from embeddings.discovery.findings import Discovery
    from lake.jobs.job import Job
    from lake.storage.store import Lake

Start = Callable[[dict[str, Any], str], "Job"]

_log = logging.getLogger(__name__)
_MOST_CACHED = 24
# About ten seconds' work on two cores. More would slow down all other pages of this process.
QUICK_PREDICTIONS = 20_000


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


class DiscoveryJob:
    """A discovery that is a job; the same attributes. `retry` starts it again when it failed or was cancelled."""

    def __init__(self, lake: Lake, job_id: str) -> None:
        self._lake = lake
        self._id = job_id

    @property
    def job(self) -> Job:
        return current.get(self._lake, self._id)

    @property
    def done(self) -> bool:
        return self.job.finished

    @property
    def share(self) -> float:
        progress = self.job.progress
        return (progress.share if progress else None) or 0.0

    @property
    def stage(self) -> str:
        progress = self.job.progress
        return progress.stage if progress else "waiting"

    @property
    def result(self) -> Discovery | None:
        from embeddings.discovery import findings

        facts = self.job.result
        return findings.of_facts(facts) if self.job.state == "done" and facts is not None else None

    @property
    def error(self) -> str | None:
        job = self.job
        return None if job.state == "done" else job.news or job.state

    def wait(self, seconds: float) -> bool:
        """It takes longer: the page shows the progress at once."""
        return self.done


_workers = ThreadPoolExecutor(1, thread_name_prefix="discovery")
_known: OrderedDict[tuple[Any, ...], RunningDiscovery] = OrderedDict()
_lock = threading.Lock()


def of(
    lake: Lake, stamp: tuple[int, ...], predictions: int, start: Start, **options: Any
) -> RunningDiscovery | DiscoveryJob:
    """The discovery for this state of the lake, started unless it is known.

    `predictions`: how many are in scope. `start`: starts a job of these arguments and this request; what it raises
    passes through. `options`: as of `embeddings.discovery.discovery.discover`.
    """
    if predictions > QUICK_PREDICTIONS:
        return _job(lake, stamp, start, options)
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


def _job(lake: Lake, stamp: tuple[int, ...], start: Start, options: dict[str, Any]) -> DiscoveryJob:
    given = {name: value for name, value in options.items() if value is not None}
    state = ".".join(map(str, stamp))
    for job in current.list(lake, kinds=["discover"], limit=_MOST_CACHED):
        if job.arguments == given | {"lake_state": state}:
            return DiscoveryJob(lake, job.id)
    request = json.dumps([state, sorted(given.items())])
    return DiscoveryJob(lake, start(given | {"lake_state": state}, request).id)
