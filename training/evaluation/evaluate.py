"""A run's model on every slice: its answers, once an image, and how good they are.

Answers go into the table scores by RUN/IMAGE_ID as they come: an evaluation that was stopped goes on where it was.
Metrics with their n and 95 % intervals go into the table metrics when all answers are there. It does not know how a
model answers, nor what follows from the numbers (`gate.py`).
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

# What every evaluation looks at.
ROLES = ("evaluation", "regression")
# Answers that are lost when the evaluation is stopped, at most.
COMMIT_IMAGES = 2_048
_COLUMNS = ("id", "image_id", "label", "confidence", "scores", "boxes", "masks")


class Model(Protocol):
    """What can be evaluated."""

    def predictions(self, images: Iterable[tuple[str, Image.Image]]) -> Iterator[Prediction]:
        """One answer an image (image_id, upright RGB), in order."""
        ...


@runtime_checkable
class VectorModel(Protocol):
    """A model that answers from the lake's vectors."""

    def predictions_of(self, lake: Lake, image_ids: Sequence[str]) -> Iterable[Prediction]:
        """One answer for each of the images that has a vector."""
        ...


@dataclass(frozen=True)
class SliceFigures:
    """A slice's metrics by name. `unanswered`: labelled images that could not be shown to the model and do not count:
    their bytes, or their vectors, are not in the lake.
    """

    slice: str
    role: str | None
    images: int
    labelled: int
    unanswered: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """`id`: the column `evaluation` of its rows in metrics. `answered`: images the model was asked about this time."""

    id: str
    run: str
    slices: list[SliceFigures]
    answered: int


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
    """Has the run's model answer every labelled image of the slices, and measures every metric of its task on each.

    The newest versions of slices of role evaluation and regression are always among them; `names` come on top, as
    NAME, NAME@VERSION or NAME@TAG (`only`: these alone). `model` stands in for the run's own. `costs` adds the metric
    cost. `progress` is told the images done and all. Raises BadInput for an unknown run or slice, and when there is no
    slice or no labelled image.
    """
    found = runs.get(lake, run)
    chosen = subjects(lake, names, only=only)
    truths = {one.id: truth_rows(lake, one, found.task) for one in chosen}
    wanted = sorted(set().union(*truths.values()))
    if not wanted:
        said = ", ".join(one.id for one in chosen)
        raise BadInput(f"no image of {said} has a label for {found.task}; label some and make the slice again")
    missing = sorted(set(wanted) - _answered(lake, found.id, wanted))
    if missing:
        if model is None:
            from training.models import trained_model as models

            model = models.load(lake, found.id)
        _answer(lake, found, model, missing, progress)
    answers = answer_rows(lake, found.id, wanted)
    measured = [metric_registry.get(name) for name in metric_registry.of_task(found.task)]
    if costs:
        measured.append(metric_registry.get(classification_metrics.Costs.name, costs))
    made = [_figures(one, truths[one.id], answers, measured, found.classes, seed) for one in chosen]
    evaluation = Evaluation(secrets.token_hex(4), found.id, made, len(missing))
    _record(lake, evaluation)
    return evaluation


def subjects(lake: Lake, names: Sequence[str] = (), *, only: bool = False) -> list[Slice]:
    """The slices an evaluation looks at, by id. Raises BadInput when there is none."""
    named = [slices.get(lake, name) for name in names]
    every = {one.id: one for one in [*named, *([] if only else slices.newest(lake, ROLES))]}
    if not every:
        raise BadInput(
            "no slice has the role evaluation or regression: give one a role with lakeloop slice role, or name slices"
        )
    return [every[key] for key in sorted(every)]


def truth_rows(lake: Lake, made: Slice, task: str) -> dict[str, Row]:
    """image_id -> label, boxes, masks of its images that are labelled for the task."""
    return {row["image_id"]: row for row in splits.ground_truth_of(lake, made, task).to_pylist()}


def answer_rows(lake: Lake, run: str, image_ids: Sequence[str]) -> dict[str, Row]:
    """image_id -> the run's stored answer, of those images that have one. Shadow answers are not among them."""
    keys = [f"{run}/{name}" for name in image_ids]
    rows = lake.look_up("scores", _COLUMNS, "id", keys, "prediction_id IS NULL").to_pylist()
    return {row["image_id"]: row for row in rows}


def judge(
    truths: Mapping[str, Row], answers: Mapping[str, Row], names: Sequence[str], classes: Sequence[str]
) -> EvaluatedPredictions:
    """Truths and answers of these images, in their order."""
    return EvaluatedPredictions.of([truths[name] for name in names], [answers[name] for name in names], classes)


# ----------------------------------------------------------------------------------------------------------


def _answered(lake: Lake, run: str, image_ids: Sequence[str]) -> set[str]:
    found = lake.known("scores", "id", [f"{run}/{name}" for name in image_ids])
    return {one.partition("/")[2] for one in found}


def _answer(
    lake: Lake,
    run: Run,
    model: Model | VectorModel,
    missing: Sequence[str],
    progress: Callable[[int, int], None] | None,
) -> None:
    for start in range(0, len(missing), COMMIT_IMAGES):
        part = missing[start : start + COMMIT_IMAGES]
        given = (
            model.predictions_of(lake, part)
            if isinstance(model, VectorModel)
            else model.predictions(_images(lake, part))
        )
        rows = [answer.row() | _facts(run, answer.image_id) for answer in given]
        lake.insert("scores", pa.Table.from_pylist(rows, schema=schema.SCORES.arrow()))
        if progress:
            progress(start + len(part), len(missing))
    lake.index("scores")


def _facts(run: Run, image_id: str) -> dict[str, Any]:
    return {"id": f"{run.id}/{image_id}", "run": run.id, "prediction_id": None, "task": run.task, "at": store.now()}


def _images(lake: Lake, image_ids: Sequence[str]) -> Iterator[tuple[str, Image.Image]]:
    """Upright RGB images, one after the other; those that the lake has no readable bytes of are left out."""
    for stored in blobs.images(lake, image_ids):
        try:
            yield stored.image_id, decode.pixels(decode.open_image(stored.data))
        except UnreadableImage:
            continue


def _figures(
    made: Slice,
    truths: Mapping[str, Row],
    answers: Mapping[str, Row],
    measured: Sequence[Metric],
    classes: Sequence[str],
    seed: int,
) -> SliceFigures:
    names = sorted(truths.keys() & answers.keys())
    found = judge(truths, answers, names, classes)
    values = {one.name: bootstrap.estimate(one, found, seed=seed) for one in measured}
    return SliceFigures(made.id, made.role, made.size, len(truths), len(truths) - len(names), values)


def _record(lake: Lake, evaluation: Evaluation) -> None:
    now = store.now()
    rows = [
        {"run": evaluation.run, "evaluation": evaluation.id, "metric": name, "slice": one.slice, "at": now}
        | {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
        for one in evaluation.slices
        for name, found in one.metrics.items()
    ]
    lake.insert("metrics", pa.Table.from_pylist(rows, schema=schema.METRICS.arrow()))
