"""Shadow mode: what a candidate version predicts for the images that the production version predicted.

It reads the production predictions that have no shadow prediction yet and predicts their images in a process of its
own, so that production never waits. Shadow predictions go into the table scores under RUN/PREDICTION_ID, never into
predictions; the view `shadow_disagreements` compares them with production.
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
from training.inference.served_model import Predictor
from training.registry import runs, versions
from training.tasks.task import Prediction

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.registry.versions import Version

# The most production predictions that are read together, and that an interruption loses.
ROUND = 512
POLL_SECONDS = 2.0


@dataclass
class ShadowReport:
    """Of one shadow version. `predicted`: images predicted now; `waiting`: production predictions without a shadow
    prediction; `not_predicted`: image_id -> reason; `compared` and `differ`: all its shadow predictions, and those that
    differ from production.
    """

    model: str
    version: int
    run: str
    predicted: int = 0
    waiting: int = 0
    compared: int = 0
    differ: int = 0
    not_predicted: dict[str, str] = field(default_factory=dict)


def predict(
    lake: Lake,
    model: str,
    *,
    limit: int | None = None,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[ShadowReport]:
    """Predicts with every shadow version of the model what production predicted, newest first, at most `limit` each.

    Raises BadInput for an unknown model, and if no version of it is a shadow.
    """
    return [Shadow(lake, version, workers).fill(limit=limit, progress=progress) for version in _shadows(lake, model)]


def watch(
    lake: Lake,
    model: str,
    stop: threading.Event,
    report: Callable[[ShadowReport], None],
    workers: int | None = None,
) -> None:
    """As `predict`, for new predictions, until `stop` is set. Calls `report` after each round with a prediction.

    Reads the list of shadow versions again in each round. An image that cannot be predicted is tried once.
    """
    _shadows(lake, model)
    running: dict[str, Shadow] = {}
    while not stop.is_set():
        current = {version.run: version for version in versions.shadows(lake, model)}
        running = {run: running.get(run) or Shadow(lake, version, workers) for run, version in current.items()}
        busy = False
        for shadow in running.values():
            try:
                result = shadow.fill(limit=ROUND, stop=stop)
            except LakeBusy:  # the next round predicts these images again
                continue
            if result.predicted or result.not_predicted:
                busy = True
                report(result)
        if not busy:
            stop.wait(POLL_SECONDS)


class Shadow:
    """One shadow version. Its model is loaded at the first prediction."""

    def __init__(self, lake: Lake, version: Version, workers: int | None = None) -> None:
        self.lake, self.version, self._workers = lake, version, workers
        self.run = runs.get(lake, version.run)
        self._predictor: Predictor | None = None
        self._failed: dict[str, str] = {}

    def fill(
        self,
        *,
        limit: int | None = None,
        stop: threading.Event | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ShadowReport:
        """Predicts at most `limit` of the waiting images."""
        report = ShadowReport(self.version.model, self.version.version, self.run.id)
        while not (stop and stop.is_set()) and (limit is None or report.predicted < limit):
            waiting = self._waiting(ROUND if limit is None else min(ROUND, limit - report.predicted))
            if not waiting:
                break
            failed = self._predict(waiting)
            report.not_predicted |= failed
            report.predicted += sum(image_id not in failed for _, image_id in waiting)
            if progress:
                progress(len(waiting))
        if report.predicted:
            self.lake.index("scores")
        report.waiting, report.compared, report.differ = self._counts()
        return report

    def _predict(self, waiting: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Predicts (prediction_id, image_id) pairs and stores the results; returns image_id -> reason of failures."""
        if self._predictor is None:
            self._predictor = Predictor(self.lake, self.run.id)
        image_ids = [*dict.fromkeys(image_id for _, image_id in waiting)]
        predictions: dict[str, Prediction] = {}
        failed: dict[str, str] = {}
        for result in batch.predict_images(self.lake, self._predictor, image_ids, self._workers):
            if isinstance(result, Prediction):
                predictions[result.image_id] = result
            else:
                failed[result.image_id] = result.reason
        now = store.now()
        rows = [
            predictions[image_id].row()
            | {"id": f"{self.run.id}/{prediction_id}", "run": self.run.id, "prediction_id": prediction_id}
            | {"task": self.run.task, "at": now}
            for prediction_id, image_id in waiting
            if image_id in predictions
        ]
        self.lake.insert("scores", pa.Table.from_pylist(rows, schema=schema.SCORES.arrow()))
        self._failed |= failed
        return failed

    def _waiting(self, most: int) -> list[tuple[str, str]]:
        """(prediction_id, image_id) of the newest production predictions without one of this run."""
        failed = pa.table({"image_id": pa.array(self._failed, pa.string())})
        table = connections.query(
            self.lake,
            f"SELECT prediction_id, image_id FROM ({self._waiting_sql()}) WHERE image_id NOT IN "
            f"(SELECT image_id FROM failed) ORDER BY ingested_at DESC, prediction_id LIMIT {most}",
            tables={"failed": failed},
        )
        return [*zip(table["prediction_id"].to_pylist(), table["image_id"].to_pylist(), strict=True)]

    def _counts(self) -> tuple[int, int, int]:
        """How many predictions are waiting, are compared, and differ."""
        run = literal(self.run.id)
        table = connections.query(
            self.lake,
            f"SELECT (SELECT count(*) FROM ({self._waiting_sql()})), "
            f"(SELECT count(*) FROM scores WHERE run = {run} AND prediction_id IS NOT NULL), "
            f"(SELECT count(*) FROM shadow_disagreements WHERE shadow_run = {run})",
        )
        waiting, compared, differ = (column[0].as_py() for column in table.columns)
        return waiting, compared, differ

    def _waiting_sql(self) -> str:
        run, version = literal(self.run.id), literal(str(self.version.version))
        return (
            f"SELECT p.prediction_id, p.image_id, p.ingested_at FROM samples p WHERE p.model = "
            f"{literal(self.version.model)} AND p.model_version IS DISTINCT FROM {version} AND NOT EXISTS (SELECT 1 "
            f"FROM scores s WHERE s.run = {run} AND s.prediction_id = p.prediction_id)"
        )


def _shadows(lake: Lake, model: str) -> list[Version]:
    shadows = versions.shadows(lake, model)
    if not shadows:
        known = versions.list(lake)
        ids = [version.id for version in known if version.model == model]
        if not ids:
            raise unknown("registered model", model, {version.model for version in known})
        raise BadInput(f"no version of model {model!r} is a shadow; run: lakeloop models shadow {ids[-1]}")
    return shadows
