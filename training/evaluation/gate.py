"""Decides whether a candidate may replace a baseline: each slice passes, fails or is undecided.

*Failed*: a one-sided paired test shows a fall of the metric (Holm over all slices that can block, so that a candidate
without any fall fails in at most 5 % of cases). *Passed*: the one-sided 95 % bound of the fall is within the slice's
margin. Otherwise *undecided*, with an estimate of how many images would decide. The gate reads the stored predictions
of two runs and writes its verdict to the table gates. docs/gate.md explains it and gives the sources.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lake.analytics import statistics
from lake.errors import BadInput
from lake.storage import schema, store
from training.evaluation import evaluate
from training.evaluation.comparison import PairedPredictions, changed_images, paired_predictions
from training.evaluation.gate_policy import GatePolicy, Standing
from training.metrics import bootstrap, classification_metrics, metric_registry, paired_tests
from training.metrics.metric import EvaluatedPredictions, Metric
from training.registry import runs, versions

if TYPE_CHECKING:
    from lake.slices import Slice
    from lake.storage.store import Lake
    from training.registry.runs import Run


@dataclass(frozen=True)
class FallEstimate:
    """How far the metric fell from the old to the new model on one slice.

    `fall`: in the metric's unit, below 0 if the new model is better. `most`: the one-sided upper bound of the true
    fall. `excluded`: a fall larger than the margin is excluded. `p`: of the one-sided test that there is no fall.
    `spread`: standard deviation of one image's part in `fall`; `unseen`: the most that one image can change.
    """

    fall: float
    most: float
    excluded: bool
    p: float
    spread: float
    unseen: float


@dataclass(frozen=True)
class SliceVerdict:
    """The outcome on one slice. `old` and `new`: the metric. `fall`, `most`, `p`: as in `FallEstimate`, None without
    images to compare. `adjusted`: p after Holm, None for watched slices. `needed`: about how many images would decide,
    None if it is decided. `newly_wrong` and `newly_right`: image_ids.
    """

    slice: str
    role: str | None
    standing: Standing
    metric: str
    margin: float
    n: int
    old: float | None
    new: float | None
    fall: float | None
    most: float | None
    p: float | None
    adjusted: float | None
    outcome: str
    blocks: bool
    needed: int | None
    newly_wrong: list[str]
    newly_right: list[str]

    @property
    def sentence(self) -> str:
        """The outcome as a sentence."""
        if self.fall is None or self.most is None or self.p is None:
            return f"{self.slice}: undecided, no labelled image has a prediction of both runs"
        values = f"{self.metric} {self.old:.3f} -> {self.new:.3f} on {self.n:,} images"
        if self.outcome == "failed":
            p = self.adjusted if self.adjusted is not None else self.p
            return f"{self.slice}: failed, {values}; p = {p:.2g} for a fall this large by chance"
        if self.outcome == "passed":
            return f"{self.slice}: passed, {values}; it fell by at most {self.most:.3f}, {self.margin:g} is allowed"
        needed = (
            f"about {self.needed:,} images would decide" if self.needed else "the images needed cannot be estimated"
        )
        bound = f"it may have fallen by {self.most:.3f}, {self.margin:g} is allowed"
        return f"{self.slice}: undecided, {values}; {bound}; {needed}"


@dataclass(frozen=True)
class GateVerdict:
    """A row of the table gates. `slices`: blocking slices first, then by fall, largest first."""

    id: str
    candidate: str
    baseline: str
    outcome: str
    blocks: bool
    policy: GatePolicy
    slices: list[SliceVerdict]

    def facts(self) -> dict[str, Any]:
        """As plain data for JSON, with the sentence of each slice."""
        facts = asdict(self)
        for slice_facts, verdict in zip(facts["slices"], self.slices, strict=True):
            slice_facts["sentence"] = verdict.sentence
        return facts


def gate(
    lake: Lake, candidate: str, baseline: str | None = None, policy: GatePolicy | None = None, *, seed: int = 0
) -> GateVerdict:
    """Compares the candidate with the baseline on every evaluation and regression slice and on the slices that the
    policy names, and writes the verdict to the table gates.

    `baseline`: by default the promoted run of the model, else the run that the candidate started from. Raises BadInput
    for an unknown run or slice, if there is no baseline, if the tasks differ, and if one run lacks predictions:
    `lakeloop evaluate RUN` makes them.
    """
    policy = policy or GatePolicy()
    new = runs.get(lake, candidate)
    old = runs.get(lake, baseline) if baseline is not None else _baseline(lake, new)
    if old.id == new.id:
        raise BadInput(f"run {new.id} cannot be compared with itself; name another run with --baseline")
    chosen = evaluate.slices_of(lake, policy.named())
    compared = [(slice_, *_compare(lake, slice_, old, new, policy, seed)) for slice_ in chosen]
    verdicts = decide(policy, compared)
    outcomes = {verdict.outcome for verdict in verdicts if verdict.standing != "watched"}
    outcome = next((outcome for outcome in ("failed", "undecided") if outcome in outcomes), "passed")
    blocks = any(verdict.blocks for verdict in verdicts)
    verdict = GateVerdict(secrets.token_hex(4), new.id, old.id, outcome, blocks, policy, verdicts)
    _record(lake, verdict)
    return verdict


def decide(
    policy: GatePolicy, compared: Sequence[tuple[Slice, PairedPredictions, Metric, FallEstimate | None]]
) -> list[SliceVerdict]:
    """The verdicts on slices that were compared, with p values adjusted over all slices that can block."""
    standings = [policy.standing(slice_.name, slice_.role) for slice_, *_ in compared]
    p_by_index = {
        i: estimate.p for i, (*_, estimate) in enumerate(compared) if standings[i] != "watched" and estimate is not None
    }
    adjusted = dict(zip(p_by_index, statistics.holm([*p_by_index.values()]), strict=True))
    verdicts = []
    for i, (slice_, pair, metric, estimate) in enumerate(compared):
        standing, margin = standings[i], policy.margin_of(slice_.name)
        outcome, needed = "undecided", None
        if estimate is not None:
            # Enough images can show even a fall within the margin. It is a fall nevertheless.
            p = adjusted.get(i, estimate.p)
            outcome = "failed" if p <= policy.fail_level else "passed" if estimate.excluded else "undecided"
            if outcome == "undecided":
                level = policy.fail_level / max(1, len(adjusted))
                needed = paired_tests.images_needed(estimate.fall, estimate.spread, margin, level, estimate.unseen)
                needed = None if needed is None else max(needed, len(pair.image_ids) + 1)
        blocks = standing != "watched" and (
            outcome == "failed" or (outcome == "undecided" and policy.undecided_blocks(slice_.name, slice_.role))
        )
        wrong, right = changed_images(metric, pair)
        verdicts.append(
            SliceVerdict(
                slice_.id,
                slice_.role,
                standing,
                metric.name,
                margin,
                len(pair.image_ids),
                _value(metric, pair.old),
                _value(metric, pair.new),
                None if estimate is None else estimate.fall,
                None if estimate is None else estimate.most,
                None if estimate is None else estimate.p,
                adjusted.get(i),
                outcome,
                blocks,
                needed,
                wrong,
                right,
            )
        )
    return sorted(verdicts, key=lambda v: (not v.blocks, -math.inf if v.fall is None else -v.fall, v.slice))


def estimate_fall(
    metric: Metric,
    old: EvaluatedPredictions,
    new: EvaluatedPredictions,
    margin: float,
    level: float = 0.05,
    seed: int = 0,
) -> FallEstimate:
    """The fall between two models on the same images. `level`: chance of excluding a fall that is there.

    Accuracy: exact McNemar test and the exact unconditional bound. Balanced accuracy: the same by class. Any other
    metric: the paired permutation test and the paired bootstrap, widened by what n images may have failed to show.
    """
    if metric.name == "accuracy":
        return _of_accuracy(old.correct(), new.correct(), margin, level)
    if metric.name == "balanced_accuracy":
        return _of_classes(old.ground_truth, old.correct(), new.correct(), margin, level, seed)
    sign = 1.0 if metric.higher_is_better else -1.0
    fall = sign * (metric.value(old) - metric.value(new))
    draws = -sign * bootstrap.differences(metric, old, new, seed=seed)
    draws = draws[np.isfinite(draws)]
    n = len(old)
    # The bootstrap's spread is too small by the square root of (n - 1) / n.
    correction = math.sqrt(n / (n - 1)) if n > 1 else math.inf
    deviation = float(draws.std()) * correction if len(draws) and n > 1 else math.inf
    z = NormalDist().inv_cdf(1 - level)
    above = max(float(np.quantile(draws, 1 - level)) - fall, z * deviation) if math.isfinite(deviation) else math.inf
    unseen = _unseen(metric, old, level)
    most = fall + math.hypot(above, unseen)
    p = bootstrap.swap_test(metric, old, new, seed=seed)
    return FallEstimate(fall, most, most <= margin, p, deviation * math.sqrt(n), unseen * n / 3.0)


def _of_accuracy(old: np.ndarray, new: np.ndarray, margin: float, level: float) -> FallEstimate:
    n, broken, repaired = len(old), int((old & ~new).sum()), int((new & ~old).sum())
    fall = (broken - repaired) / n
    excluded = paired_tests.beyond_p(broken, repaired, n, margin) <= level
    most = paired_tests.upper_bound(broken, repaired, n, level)
    # The bound is known to 1e-4 only. It must not contradict the test at the margin itself.
    most = min(most, margin) if excluded else max(most, math.nextafter(margin, math.inf))
    disagreed = (broken + repaired + 1) / (n + 2)
    spread = math.sqrt(disagreed - fall**2 / 2)
    return FallEstimate(fall, most, excluded, paired_tests.fall_p(broken, repaired), spread, 1.0)


def _of_classes(
    ground_truth: np.ndarray, old: np.ndarray, new: np.ndarray, margin: float, level: float, seed: int
) -> FallEstimate:
    rows_by_class = [np.flatnonzero(ground_truth == k) for k in np.unique(ground_truth[ground_truth >= 0])]
    cells = [(int((old & ~new)[rows].sum()), int((new & ~old)[rows].sum()), len(rows)) for rows in rows_by_class]
    k, n = len(cells), len(ground_truth)
    fall = float(sum((b - c) / size for b, c, size in cells)) / k
    most = paired_tests.upper_bound_of_classes(cells, level)
    variance = sum((b + c + 1) / (size + 2) / size for b, c, size in cells) / k**2
    unseen = max(n / (k * size) for _, _, size in cells)
    p = paired_tests.fall_p_of_classes(cells, seed)
    return FallEstimate(fall, most, most <= margin, p, math.sqrt(variance * n), unseen)


def _unseen(metric: Metric, evaluated: EvaluatedPredictions, level: float) -> float:
    """The largest fall that n images without a single change cannot exclude (the rule of three).

    A share 1 - level^(1/n) of all images may be of a kind that is not among the n, and go from right to wrong. For
    metrics that average over classes, of the images of each class.
    """
    n = len(evaluated)
    if isinstance(metric, classification_metrics.MacroF1 | classification_metrics.Auroc):
        counts = np.bincount(evaluated.ground_truth[evaluated.ground_truth >= 0])
        shares = 1 - level ** (1 / counts[counts > 0])
        return float(np.sqrt((shares**2).sum())) / len(shares)
    scale: float = (
        metric.maximum if isinstance(metric, classification_metrics.Costs) else float(getattr(metric, "range", 1.0))
    )
    return float(scale * (1 - level ** (1 / n)))


def _compare(
    lake: Lake, slice_: Slice, old: Run, new: Run, policy: GatePolicy, seed: int
) -> tuple[PairedPredictions, Metric, FallEstimate | None]:
    metric = metric_registry.get(policy.metric_of(slice_.name, new.task), policy.costs or None)
    if new.task not in metric.tasks:
        raise BadInput(
            f"metric {metric.name} is for {' and '.join(metric.tasks)}, but the runs on {slice_.id} are for {new.task}"
        )
    pair = paired_predictions(lake, slice_, old, new)
    if not pair.image_ids or not all(np.isfinite(metric.value(side)) for side in (pair.old, pair.new)):
        return pair, metric, None
    margin = policy.margin_of(slice_.name)
    return pair, metric, estimate_fall(metric, pair.old, pair.new, margin, policy.pass_level, seed)


def _baseline(lake: Lake, candidate: Run) -> Run:
    """The run that the candidate would replace: the promoted one; for a promoted candidate, the one promoted before."""
    promoted = [version.run for version in versions.promotion_stack(lake, candidate.model)]
    baseline = next((run for run in reversed(promoted) if run != candidate.id), candidate.parent)
    if baseline is None:
        raise BadInput(
            f"no other version of {candidate.model} is promoted and run {candidate.id} has no parent: "
            "name the run to compare with, --baseline RUN"
        )
    return runs.get(lake, baseline)


def _record(lake: Lake, verdict: GateVerdict) -> None:
    facts = verdict.facts()
    row = {key: facts[key] for key in ("id", "candidate", "baseline", "outcome", "blocks")}
    row |= {"policy": verdict.policy.json(), "slices": json.dumps(facts["slices"]), "at": store.now()}
    lake.insert("gates", pa.Table.from_pylist([row], schema=schema.GATES.arrow()))


def _value(metric: Metric, evaluated: EvaluatedPredictions) -> float | None:
    value = metric.value(evaluated) if len(evaluated) else math.nan
    return value if math.isfinite(value) else None
