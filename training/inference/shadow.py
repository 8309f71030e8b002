"""Shadow mode: what a candidate would have said to the queries that production answered.

It reads the answers of the model's other versions that a shadowed version has no answer beside yet, and answers their
images in a process of its own, so that production waits for nothing, whoever serves it. Its answers go into the table
scores under RUN/PREDICTION_ID, never into predictions; the view `shadow_disagreements` sets them beside production's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from lake.errors import BadInput, LakeBusy
from lake.slices.naming import unknown
from lake.sql import connections
from lake.storage import schema, store
from lake.storage.store import literal
from training.inference import batch
from training.inference.served_model import Answering
from training.registry import runs, versions
from training.tasks.task import Prediction

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.registry.versions import Version

# Production answers that are looked at together, and answers that are lost when it is stopped, at most.
ROUND = 512
LOOK_SECONDS = 2.0


@dataclass
class Report:
    """Of one shadowed version: `answered` now; `waiting`: production's answers that it has still none beside;
    `unanswered`: image_id -> why; `compared` and `differ`: all its shadow answers, and those unlike production's.
    """

    model: str
    version: int
    run: str
    answered: int = 0
    waiting: int = 0
    compared: int = 0
    differ: int = 0
    unanswered: dict[str, str] = field(default_factory=dict)


def answer(
    lake: Lake,
    model: str,
    *,
    limit: int | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Report]:
    """Has every shadowed version of the model answer what production answered, the newest first, `limit` each.

    Raises BadInput for an unknown model, and when no version of it is shadowed.
    """
    return [Shadow(lake, version, workers).fill(limit=limit, progress=progress) for version in _shadowed(lake, model)]


def watch(
    lake: Lake, model: str, stop: threading.Event, report: Callable[[Report], None], workers: int | None = None
) -> None:
    """`answer` for what arrives, until `stop` is set; after each round that answered something, its report.

    Which versions are shadowed is looked up anew each time. An image that cannot be answered is tried once.
    """
    _shadowed(lake, model)
    running: dict[str, Shadow] = {}
    while not stop.is_set():
        there = {one.run: one for one in versions.shadows(lake, model)}
        running = {run: running.get(run) or Shadow(lake, one, workers) for run, one in there.items()}
        busy = False
        for one in running.values():
            try:
                said = one.fill(limit=ROUND, stop=stop)
            except LakeBusy:  # what was answered is asked again in the next round
                continue
            if said.answered or said.unanswered:
                busy = True
                report(said)
        if not busy:
            stop.wait(LOOK_SECONDS)


class Shadow:
    """One shadowed version: its model is loaded when it is first asked."""

    def __init__(self, lake: Lake, version: Version, workers: int | None = None) -> None:
        self.lake, self.version, self._workers = lake, version, workers
        self.run = runs.get(lake, version.run)
        self._answering: Answering | None = None
        self._given_up: dict[str, str] = {}

    def fill(
        self,
        *,
        limit: int | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Report:
        """Answers at most `limit` of what waits."""
        report = Report(self.version.model, self.version.version, self.run.id)
        while not (stop and stop.is_set()) and (limit is None or report.answered < limit):
            part = self._waiting(ROUND if limit is None else min(ROUND, limit - report.answered))
            if not part:
                break
            given_up = self._answer(part)
            report.unanswered |= given_up
            report.answered += sum(image not in given_up for _, image in part)
            if progress:
                progress(len(part))
        if report.answered:
            self.lake.index("scores")
        report.waiting, report.compared, report.differ = self._counts()
        return report

    def _answer(self, part: Sequence[tuple[str, str]]) -> dict[str, str]:
        if self._answering is None:
            self._answering = Answering(self.lake, self.run.id)
        asked = [*dict.fromkeys(image for _, image in part)]
        found: dict[str, Prediction] = {}
        given_up: dict[str, str] = {}
        for one in batch.of_images(self.lake, self._answering, asked, self._workers):
            if isinstance(one, Prediction):
                found[one.image_id] = one
            else:
                given_up[one.image_id] = one.reason
        now = store.now()
        rows = [
            found[image].row()
            | {"id": f"{self.run.id}/{prediction}", "run": self.run.id, "prediction_id": prediction}
            | {"task": self.run.task, "at": now}
            for prediction, image in part
            if image in found
        ]
        self.lake.insert("scores", pa.Table.from_pylist(rows, schema=schema.SCORES.arrow()))
        self._given_up |= given_up
        return given_up

    def _waiting(self, most: int) -> list[tuple[str, str]]:
        """(prediction_id, image_id) of production's newest answers without one of this run beside them."""
        given_up = pa.table({"image_id": pa.array(self._given_up, pa.string())})
        found = connections.query(
            self.lake,
            f"SELECT prediction_id, image_id FROM ({self._open()}) WHERE image_id NOT IN "
            f"(SELECT image_id FROM given_up) ORDER BY ingested_at DESC, prediction_id LIMIT {most}",
            tables={"given_up": given_up},
        )
        return [*zip(found["prediction_id"].to_pylist(), found["image_id"].to_pylist(), strict=True)]

    def _counts(self) -> tuple[int, int, int]:
        """What waits, what was compared, what of it differs."""
        run = literal(self.run.id)
        found = connections.query(
            self.lake,
            f"SELECT (SELECT count(*) FROM ({self._open()})), "
            f"(SELECT count(*) FROM scores WHERE run = {run} AND prediction_id IS NOT NULL), "
            f"(SELECT count(*) FROM shadow_disagreements WHERE shadow_run = {run})",
        )
        waiting, compared, differ = (column[0].as_py() for column in found.columns)
        return waiting, compared, differ

    def _open(self) -> str:
        run, version = literal(self.run.id), literal(str(self.version.version))
        return (
            f"SELECT p.prediction_id, p.image_id, p.ingested_at FROM predictions p WHERE p.model = "
            f"{literal(self.version.model)} AND p.model_version IS DISTINCT FROM {version} AND NOT EXISTS (SELECT 1 "
            f"FROM scores s WHERE s.run = {run} AND s.prediction_id = p.prediction_id)"
        )


def _shadowed(lake: Lake, model: str) -> list[Version]:
    found = versions.shadows(lake, model)
    if not found:
        there = [one for one in versions.list(lake) if one.model == model]
        if not there:
            raise unknown("registered model", model, {one.model for one in versions.list(lake)})
        raise BadInput(f"no version of model {model!r} is shadowed; run: lakeloop models shadow {there[-1].id}")
    return found
