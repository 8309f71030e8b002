"""Trains a probe: a linear head on vectors that the lake already has, its temperature and its metrics. Seconds.

A probe is the baseline that a fine-tuned network has to beat. `training/models/probe.py` fits the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lake.errors import BadInput
from training.data import splits
from training.fit import checkpoint
from training.metrics import metric_registry
from training.metrics.metric import EvaluatedPredictions
from training.models import probe, trained_model
from training.registry import runs
from training.registry.recipe import Recipe
from training.registry.runs import Run

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.models.probe import Probe

# The labels of n images, and their vectors (n, dim).
LabelledVectors = tuple[list[str], np.ndarray]
METRICS = ("accuracy", "balanced_accuracy", "ece")


def fit(lake: Lake, run: Run) -> Run:
    """Fits the probe of a run that `train_model.begin` created. Returns the run as recorded at the end.

    Images without a vector are left out, and counted in the record. Raises BadInput if no training image has a vector.
    """
    from embeddings.embedders.embedder import record_of

    recipe, folder = run.recipe, runs.folder(lake, run.id)
    if run.status == "done":
        raise BadInput(f"run {run.id} is done; to continue from it, run: lakeloop train --from {run.id} --train SLICE")
    with checkpoint.locked(folder):
        try:
            record = record_of(lake, recipe.embedder or None)
            vectors, without = _vectors(lake, run, record)
            if not vectors["train"][0]:
                raise BadInput(f"no training image has a {record.name} vector; run: lakeloop embed")
            parent = trained_model.load(lake, run.parent) if run.parent else None
            start = parent.probe if isinstance(parent, trained_model.ProbeModel) else None
            fitted = _fitted(recipe, vectors, start)
            temperature = _temperature(fitted, vectors["validation"]) if recipe.calibrate else 1.0
            trained_model.save_probe(folder, fitted, record.name, temperature)
            run = replace(run, classes=tuple(fitted.classes))
            model = trained_model.ProbeModel(run, fitted, record.name, temperature)
            result: dict[str, Any] = {"temperature": temperature, "embedder": record.name, "without_vector": without}
            rows: list[dict[str, Any]] = []
            for use in ("train", "validation", "test"):
                n = len(vectors[use][0])
                if not n:
                    continue
                measured = _measured(model, vectors[use], recipe)
                result |= {use: measured} if use == "validation" else {}
                rows += [
                    {"metric": name, "value": value, "n": n, "split": use, "step": 0, "epoch": 0.0}
                    for name, value in measured.items()
                ]
            runs.log(lake, run.id, rows)
            artifacts = {path.stem: runs.artifact(lake, path) for path in trained_model.files(folder)}
            return runs.end(lake, run, "done", artifacts=artifacts, data=run.data | {"result": result})
        except Exception as error:
            runs.end(lake, run, "failed", str(error) or type(error).__name__)
            raise


def _vectors(lake: Lake, run: Run, record: Any) -> tuple[dict[str, LabelledVectors], int]:
    """Labels and vectors of each split, and how many images have no vector."""
    from lake.storage.vectors import image_vectors

    table, by_use, without = trained_model.read_items(runs.folder(lake, run.id)), dict[str, LabelledVectors](), 0
    for use in ("train", "replay", "validation", "test"):
        images = splits.images_of(lake, run.task, table, use)
        labels = {image.image_id: str(image.ground_truth.label) for image in images}
        names, vectors = image_vectors(lake, record, [*labels])
        without += len(labels) - len(names)
        by_use[use] = [labels[name] for name in names], vectors
    return by_use, without


def _fitted(recipe: Recipe, vectors: Mapping[str, LabelledVectors], start: Probe | None) -> Probe:
    """The probe of the training and replay vectors.

    All replay images together have the recipe's share of the weight; if the share is 0, each has the weight of a new
    image. Balancing gives every class the same weight, whichever way the recipe names it.
    """
    (labels, new), (old_labels, old) = vectors["train"], vectors["replay"]
    weights = np.ones(len(labels) + len(old_labels))
    if old_labels and recipe.replay:
        weights[len(labels) :] = len(labels) * recipe.replay / (1 - recipe.replay) / len(old_labels)
    return probe.fit(
        np.concatenate([new, old]),
        [*labels, *old_labels],
        recipe.regularisation,
        weights=weights,
        balanced=recipe.balance != "none",
        hidden=recipe.hidden,
        start=start if start is not None and start.hidden is None and not recipe.hidden else None,
        seed=recipe.seed,
    )


def _temperature(fitted: Probe, validation: LabelledVectors) -> float:
    from training.tasks.classification import temperature_of

    labels, vectors = validation
    known = np.array([label in fitted.classes for label in labels], bool)
    if not known.any():
        return 1.0
    codes = np.array([fitted.classes.index(label) for label in labels if label in fitted.classes])
    return temperature_of(np.log(np.maximum(fitted.probabilities(vectors[known]), 1e-300)), codes)


def _measured(model: trained_model.ProbeModel, split: LabelledVectors, recipe: Recipe) -> dict[str, float]:
    labels, vectors = split
    predictions = model.predictions_from_vectors([""] * len(labels), vectors)
    evaluated = EvaluatedPredictions.of(
        [{"label": label} for label in labels], [prediction.row() for prediction in predictions], model.classes
    )
    names = dict.fromkeys([*METRICS, *([recipe.metric] if recipe.metric not in ("", "loss") else [])])
    return {name: metric_registry.get(name).value(evaluated) for name in names}
