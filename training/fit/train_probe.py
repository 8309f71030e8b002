"""A probe's run: vectors that the lake has already, a head on them, its temperature, its metrics. Seconds.

It is the baseline that a fine-tuned network has to beat. The fitting itself is `probe.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lake.errors import BadInput
from training.data import splits as data
from training.fit import checkpoint
from training.metrics import metric, metric_registry
from training.models import probe, trained_model
from training.registry import runs
from training.registry.recipe import Recipe
from training.registry.runs import Run

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.models.probe import Probe

# (labels, vectors (n, dim)) of a split.
Split = tuple[list[str], np.ndarray]
METRICS = ("accuracy", "balanced_accuracy", "ece")


def fit(lake: Lake, run: Run) -> Run:
    """Fits the probe of a run that was begun; the run as it is recorded then.

    Images without a vector are left out, and counted in the record. Raises BadInput when no training image has one.
    """
    from embeddings.embedders.embedder import record_of

    recipe, folder = run.recipe, runs.folder(lake, run.id)
    if run.status == "done":
        raise BadInput(f"run {run.id} is done; go on from it with: lakeloop train --from {run.id} --train SLICE")
    with checkpoint.locked(folder):
        try:
            record = record_of(lake, recipe.embedder or None)
            splits, without = _splits(lake, run, record)
            if not splits["train"][0]:
                raise BadInput(f"no training image has a {record.name} vector; run: lakeloop embed")
            before = trained_model.load(lake, run.parent) if run.parent else None
            start = before.probe if isinstance(before, trained_model.ProbeModel) else None
            fitted = _fitted(recipe, splits, start)
            temperature = _temperature(fitted, splits["validation"]) if recipe.calibrate else 1.0
            trained_model.save_probe(folder, fitted, record.name, temperature)
            run = replace(run, classes=tuple(fitted.classes))
            found: dict[str, Any] = {"temperature": temperature, "embedder": record.name, "without_vector": without}
            rows: list[dict[str, Any]] = []
            for use in ("train", "validation", "test"):
                if splits[use][0]:
                    measured = _measured(
                        trained_model.ProbeModel(run, fitted, record.name, temperature), splits[use], recipe
                    )
                    found |= {use: measured} if use == "validation" else {}
                    rows += [
                        {
                            "metric": name,
                            "value": value,
                            "n": len(splits[use][0]),
                            "split": use,
                            "step": 0,
                            "epoch": 0.0,
                        }
                        for name, value in measured.items()
                    ]
            runs.log(lake, run.id, rows)
            artifacts = {path.stem: runs.artifact(lake, path) for path in trained_model.files(folder)}
            return runs.end(lake, run, "done", artifacts=artifacts, data=run.data | {"result": found})
        except Exception as error:
            runs.end(lake, run, "failed", str(error) or type(error).__name__)
            raise


def _splits(lake: Lake, run: Run, record: Any) -> tuple[dict[str, Split], int]:
    """Labels and vectors of each split, and how many images have no vector."""
    from lake.storage.vectors import image_vectors

    table, splits, without = trained_model.read_items(runs.folder(lake, run.id)), dict[str, Split](), 0
    for use in ("train", "replay", "validation", "test"):
        items = data.items(lake, run.task, table, use)
        said = {item.image_id: str(item.truth.label) for item in items}
        names, vectors = image_vectors(lake, record, [*said])
        without += len(said) - len(names)
        splits[use] = [said[name] for name in names], vectors
    return splits, without


def _fitted(recipe: Recipe, splits: Mapping[str, Split], start: Probe | None) -> Probe:
    """Images of replay slices weigh, all together, the recipe's share; with a share of 0 each weighs what a new one
    does. Balancing has every class weigh the same, whichever way the recipe names it.
    """
    (new, vectors), (old, older) = splits["train"], splits["replay"]
    each = np.ones(len(new) + len(old))
    if old and recipe.replay:
        each[len(new) :] = len(new) * recipe.replay / (1 - recipe.replay) / len(old)
    return probe.fit(
        np.concatenate([vectors, older]),
        [*new, *old],
        recipe.regularisation,
        weights=each,
        balanced=recipe.balance != "none",
        hidden=recipe.hidden,
        start=start if start is not None and start.hidden is None and not recipe.hidden else None,
        seed=recipe.seed,
    )


def _temperature(fitted: Probe, held: Split) -> float:
    from training.tasks.classification import temperature_of

    labels, vectors = held
    known = np.array([one in fitted.classes for one in labels], bool)
    if not known.any():
        return 1.0
    right = np.array([fitted.classes.index(one) for one in labels if one in fitted.classes])
    return temperature_of(np.log(np.maximum(fitted.probabilities(vectors[known]), 1e-300)), right)


def _measured(made: trained_model.ProbeModel, split: Split, recipe: Recipe) -> dict[str, float]:
    labels, vectors = split
    answers: Sequence[Mapping[str, Any]] = [one.row() for one in made.said([""] * len(labels), vectors)]
    judged = metric.judged([{"label": one} for one in labels], answers, made.classes)
    names = dict.fromkeys([*METRICS, *([recipe.metric] if recipe.metric not in ("", "loss") else [])])
    return {name: metric_registry.get(name).value(judged) for name in names}
