"""Evaluates a run on every slice: stores its predictions and measures all metrics of its task.

Predictions go into the table scores as RUN/IMAGE_ID in batches, so an interrupted evaluation resumes. Metrics go into
the table metrics when all predictions are there. How a model predicts is not known here, nor what follows from the
metrics (`gate.py`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pyarrow as pa

from lake import slices
from lake.errors import BadInput, UnreadableImage
from lake.images import decode
from lake.storage import blobs, schema, store
from training.data import splits
from training.metrics import bootstrap, classification_metrics, metric_registry
from training.metrics.bootstrap import Estimate
from training.metrics.classification_metrics import CostMatrix
from training.metrics.metric import EvaluatedPredictions, Metric, Row
from training.registry import runs
from training.tasks.task import Prediction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL import Image

    from lake.slices import Slice
    from lake.storage.store import Lake
    from training.registry.runs import Run

# The roles of the slices that every evaluation covers.
ROLES = ("evaluation", "regression")
# The most predictions that an interruption loses.
COMMIT_IMAGES = 2_048
_COLUMNS = ("id", "image_id", "label", "confidence", "scores", "boxes", "masks")


class Model(Protocol):
    """A model that predicts images."""

    def predictions(self, images: Iterable[tuple[str, Image.Image]]) -> Iterator[Prediction]:
        """One prediction for each (image_id, upright RGB image), in order."""
        ...


@runtime_checkable
class VectorModel(Protocol):
    """A model that predicts from the lake's vectors."""

    def predictions_of(self, lake: Lake, image_ids: Sequence[str]) -> Iterable[Prediction]:
        """One prediction for each of the images that has a vector."""
        ...


@dataclass(frozen=True)
class SliceMetrics:
    """The metrics of one slice by name. `labelled`: images with a complete label for the task. `incomplete`: images of
    whose label a part could not be read. `not_predicted`: labelled images without a prediction, as the lake lacks their
    bytes or vectors. The metrics count neither of the latter.
    """

    slice: str
    role: str | None
    images: int
    labelled: int
    incomplete: int
    not_predicted: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """`id`: the column `evaluation` of its rows in metrics. `predicted`: images that were predicted this time."""

    id: str
    run: str
    slices: list[SliceMetrics]
    predicted: int


def evaluate(
    lake: Lake,
    run: str,
    names: Sequence[str] = (),
    *,
    model: Model | VectorModel | None = None,
    costs: CostMatrix | None = None,
    only: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predicts every labelled image of the slices with the run's model, and measures every metric of its task.

    Covers the newest versions of all evaluation and regression slices, and the slices `names` (NAME, NAME@VERSION or
    NAME@TAG); `only`: just these. `model` replaces the run's own. `costs` adds the metric cost. `progress` gets the
    number of images done, and of all. Raises BadInput for an unknown run or slice, and if there is no slice or no
    labelled image.
    """
    record = runs.get(lake, run)
    chosen = slices_of(lake, names, only=only)
    labelled = {slice_.id: _labelled_rows(lake, slice_, record.task) for slice_ in chosen}
    ground_truth = {slice_id: _complete(rows) for slice_id, rows in labelled.items()}
    image_ids = sorted(set().union(*ground_truth.values()))
    if not image_ids:
        listed = ", ".join(slice_.id for slice_ in chosen)
        kind = "complete label" if any(labelled.values()) else "label"
        raise BadInput(f"no image of {listed} has a {kind} for {record.task}; label images and create the slice again")
    missing = sorted(set(image_ids) - _predicted(lake, record.id, image_ids))
    if missing:
        if model is None:
            from training.models import trained_model

            model = trained_model.load(lake, record.id)
        _predict(lake, record, model, missing, progress)
    predictions = prediction_rows(lake, record.id, image_ids)
    metrics = [metric_registry.get(name) for name in metric_registry.of_task(record.task)]
    if costs:
        metrics.append(metric_registry.get(classification_metrics.Costs.name, costs))
    results = [_measure(slice_, labelled[slice_.id], predictions, metrics, record.classes, seed) for slice_ in chosen]
    evaluation = Evaluation(secrets.token_hex(4), record.id, results, len(missing))
    _record(lake, evaluation)
    return evaluation


def slices_of(lake: Lake, names: Sequence[str] = (), *, only: bool = False) -> list[Slice]:
    """The slices that an evaluation covers, by id. Raises BadInput if there is none."""
    chosen = [slices.get(lake, name) for name in names]
    if not only:
        chosen += slices.newest(lake, ROLES)
    by_id = {slice_.id: slice_ for slice_ in chosen}
    if not by_id:
        raise BadInput(
            "no slice has the role evaluation or regression: set one with lakeloop slice role, or name slices"
        )
    return [by_id[key] for key in sorted(by_id)]


def ground_truth_rows(lake: Lake, slice_: Slice, task: str) -> dict[str, Row]:
    """image_id -> label, boxes, masks, crowd regions of the images of the slice with a complete label for the task."""
    return _complete(_labelled_rows(lake, slice_, task))


def prediction_rows(lake: Lake, run: str, image_ids: Sequence[str]) -> dict[str, Row]:
    """image_id -> the run's stored prediction, for the images that have one. Shadow predictions are excluded."""
    keys = [f"{run}/{image_id}" for image_id in image_ids]
    rows = lake.look_up("scores", _COLUMNS, "id", keys, "prediction_id IS NULL").to_pylist()
    return {row["image_id"]: row for row in rows}


def pair_rows(
    ground_truth: Mapping[str, Row], predictions: Mapping[str, Row], image_ids: Sequence[str], classes: Sequence[str]
) -> EvaluatedPredictions:
    """Predictions beside the ground truth of these images, in their order."""
    return EvaluatedPredictions.of(
        [ground_truth[image_id] for image_id in image_ids],
        [predictions[image_id] for image_id in image_ids],
        classes,
    )


# ----------------------------------------------------------------------------------------------------------


def _labelled_rows(lake: Lake, slice_: Slice, task: str) -> dict[str, Row]:
    return {row["image_id"]: row for row in splits.ground_truth_of(lake, slice_, task).to_pylist()}


def _complete(rows: Mapping[str, Row]) -> dict[str, Row]:
    return {image_id: row for image_id, row in rows.items() if not row["incomplete"]}


def _predicted(lake: Lake, run: str, image_ids: Sequence[str]) -> set[str]:
    keys = lake.known("scores", "id", [f"{run}/{image_id}" for image_id in image_ids])
    return {key.partition("/")[2] for key in keys}


def _predict(
    lake: Lake,
    run: Run,
    model: Model | VectorModel,
    missing: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> None:
    for start in range(0, len(missing), COMMIT_IMAGES):
        batch = missing[start : start + COMMIT_IMAGES]
        predictions = (
            model.predictions_of(lake, batch)
            if isinstance(model, VectorModel)
            else model.predictions(_images(lake, batch))
        )
        rows = [prediction.row() | _key_columns(run, prediction.image_id) for prediction in predictions]
        lake.insert("scores", pa.Table.from_pylist(rows, schema=schema.SCORES.arrow()))
        if progress:
            progress(start + len(batch), len(missing))
    lake.index("scores")


def _key_columns(run: Run, image_id: str) -> dict[str, Any]:
    return {"id": f"{run.id}/{image_id}", "run": run.id, "prediction_id": None, "task": run.task, "at": store.now()}


def _images(lake: Lake, image_ids: Sequence[str]) -> Iterator[tuple[str, Image.Image]]:
    """Upright RGB images one by one, without those that the lake has no readable bytes of."""
    for stored in blobs.images(lake, image_ids):
        try:
            yield stored.image_id, decode.pixels(decode.open_image(stored.data), levels=stored.levels)
        except UnreadableImage:
            continue


def _measure(
    slice_: Slice,
    labelled: Mapping[str, Row],
    predictions: Mapping[str, Row],
    metrics: Sequence[Metric],
    classes: Sequence[str],
    seed: int,
) -> SliceMetrics:
    ground_truth = _complete(labelled)
    incomplete = len(labelled) - len(ground_truth)
    image_ids = sorted(ground_truth.keys() & predictions.keys())
    evaluated = pair_rows(ground_truth, predictions, image_ids, classes)
    estimates = {metric.name: bootstrap.estimate(metric, evaluated, seed=seed) for metric in metrics}
    unpredicted = len(ground_truth) - len(image_ids)
    return SliceMetrics(slice_.id, slice_.role, slice_.size, len(ground_truth), incomplete, unpredicted, estimates)


def _record(lake: Lake, evaluation: Evaluation) -> None:
    now = store.now()
    rows = [
        {"run": evaluation.run, "evaluation": evaluation.id, "metric": name, "slice": result.slice, "at": now}
        | {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}
        for result in evaluation.slices
        for name, estimate in result.metrics.items()
    ]
    lake.insert("metrics", pa.Table.from_pylist(rows, schema=schema.METRICS.arrow()))
