"""Finds where a model fails: slices of predictions that are wrong more often than chance explains.

It compares all combinations of up to three values (promoted columns, metadata, model, predicted label, time, source
folder, the image's size and format) and the clusters of the newest tree. Where no tree covers the predictions, it
makes clusters of its own and looks for kinds of image that no column names. `subgroups.py` decides what is
significant; `prediction_table.py` turns predictions into numbers, and subgroups into findings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from embeddings.discovery import prediction_table, subgroups
from embeddings.discovery.findings import Discovery, Errors
from embeddings.discovery.prediction_table import MIN_PREDICTIONS, By
from lake.analytics.statistics import wilson
from lake.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

    from lake.storage.store import Lake


def discover(
    lake: Lake,
    where: str | None = None,
    *,
    by: By = "both",
    errors: Errors = "judged",
    seed: int = 0,
    permutations: int = subgroups.PERMUTATIONS,
    progress: Callable[[float, str], None] | None = None,
) -> Discovery:
    """The worst slices among the predictions that pass `where` (checked by `lake.analytics.metrics.scope`).

    Of an image with several predictions, the newest reviewed one counts: repeats of an image are no more evidence.
    `errors`: "judged" counts predictions that a label or a review calls wrong. "confidence" uses 1 - confidence as the
    error, if nothing is reviewed: it finds where the model is unsure, not where it is sure and wrong.
    `progress` receives the share that is done, 0 to 1, and the stage that begins. Raises BadInput if there are fewer
    than MIN_PREDICTIONS predictions with an error.
    """
    start = time.perf_counter()
    report = progress or (lambda share, stage: None)
    if by not in ("both", "metadata", "cluster"):
        raise BadInput(f"by is {by!r}; it must be one of both, metadata, cluster")
    if errors not in ("judged", "confidence"):
        raise BadInput(f"errors is {errors!r}; it must be one of judged, confidence")
    report(0.0, "reading predictions")
    table, total = prediction_table.read(lake, where, by, errors)
    if len(table.wrong) < MIN_PREDICTIONS:
        raise BadInput(_too_few(len(table.wrong), errors))
    points: np.ndarray | None = None
    remark = None
    if by != "metadata":
        report(0.1, "clusters")
        points, remark = table.add_clusters(lake, seed)
    report(0.3, "comparing subgroups")
    result = subgroups.search(
        table.codes(),
        table.wrong,
        points,
        clusters=table.clusters,
        unnamed=table.unnamed,
        seed=seed,
        permutations=permutations,
        progress=lambda share: report(0.3 + 0.6 * share, "permuting errors"),
    )
    report(0.95, "findings")
    return Discovery(
        [table.finding(failure) for failure in result.failures],
        errors,
        len(table.wrong),
        total,
        wilson(round(float(table.wrong.sum())), len(table.wrong)),
        result.compared,
        result.max_conditions,
        remark,
        time.perf_counter() - start,
    )


def _too_few(n: int, errors: Errors) -> str:
    if errors == "judged":
        return (
            f"{n} predictions are reviewed, {MIN_PREDICTIONS} are needed: label a random sample, or find what the "
            "model is unsure of with: lakeloop discover --errors confidence"
        )
    return f"{n} predictions have a confidence, {MIN_PREDICTIONS} are needed"
