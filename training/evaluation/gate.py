"""The gate: on every slice, has the candidate fallen, has it not, or can nobody say yet.

*Failed*: a one-sided paired test shows a fall (Holm over all slices that can block, so that a candidate that has not
fallen anywhere is failed in at most 5 % of cases). *Passed*: the one-sided 95 % bound of the fall lies below the
slice's margin. Otherwise *undecided*, with about how many images would decide. It reads the stored answers of two runs
and writes its verdict to the table gates; it asks no model. docs/gate.md says it in words and gives the sources.
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
from training.evaluation.comparison import Pair, changed, pair
from training.evaluation.gate_policy import Policy, Standing
from training.metrics import bootstrap, classification_metrics, metric_registry, paired_tests
from training.metrics.metric import EvaluatedPredictions, Metric
from training.registry import runs, versions

if TYPE_CHECKING:
    from lake.slices import Slice
    from lake.storage.store import Lake
    from training.registry.runs import Run


@dataclass(frozen=True)
class Comparison:
    """What the images of one slice say of a fall from the old model to the new one.

    `fall`: how much worse the new one is, in the metric's unit, below 0 when it is better. `most`: the one-sided upper
    bound of the true fall. `excluded`: a fall larger than the margin is excluded. `p`: of the one-sided test that there
    is no fall. `spread`: standard deviation of one image's part in `fall`; `unseen`: what one image can change at most.
    """

    fall: float
    most: float
    excluded: bool
    p: float
    spread: float
    unseen: float


@dataclass(frozen=True)
class SliceVerdict:
    """The outcome on one slice. `old` and `new`: the metric; `fall`, `most`, `p`: as in `Comparison`, null when nothing
    could be compared. `adjusted`: p after Holm, null for watched slices. `needed`: about how many images would decide,
    null when it is decided. `newly_wrong` and `newly_right`: image_ids.
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
        """The outcome in words."""
        if self.fall is None or self.most is None or self.p is None:
            return f"{self.slice}: undecided, it has no image that is labelled and answered by both"
        moved = f"{self.metric} {self.old:.3f} -> {self.new:.3f} on {self.n:,} images"
        if self.outcome == "failed":
            shown = self.adjusted if self.adjusted is not None else self.p
            return f"{self.slice}: failed, {moved}; a fall this large comes by chance with p {shown:.2g}"
        if self.outcome == "passed":
            return f"{self.slice}: passed, {moved}; it fell by {self.most:.3f} at most, {self.margin:g} is allowed"
        about = f"about {self.needed:,} images would decide" if self.needed else "no number of images can be said"
        allowed = f"it may have fallen by {self.most:.3f}, {self.margin:g} is allowed"
        return f"{self.slice}: undecided, {moved}; {allowed}; {about}"


@dataclass(frozen=True)
class Verdict:
    """A row of the table gates. `slices`: those that block first, then by fall, the largest first."""

    id: str
    candidate: str
    baseline: str
    outcome: str
    blocks: bool
    policy: Policy
    slices: list[SliceVerdict]

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        said = asdict(self)
        return said | {"slices": [part | {"sentence": one.sentence} for part, one in
                                  zip(said["slices"], self.slices, strict=True)]}  # fmt: skip


def gate(
    lake: Lake, candidate: str, baseline: str | None = None, policy: Policy | None = None, *, seed: int = 0
) -> Verdict:
    """Judges the candidate against the baseline on every slice of role evaluation or regression and on those that the
    policy names, and writes the verdict down.

    `baseline`: by default the run whose version of the model is promoted, else the run the candidate began from.
    Raises BadInput for an unknown run or slice, when there is no baseline, when the two have different tasks, and when
    one of them lacks answers: `lakeloop evaluate RUN` gets them.
    """
    policy = policy or Policy()
    new = runs.get(lake, candidate)
    old = runs.get(lake, baseline) if baseline is not None else _baseline(lake, new)
    if old.id == new.id:
        raise BadInput(f"run {new.id} cannot be judged against itself; name another with --baseline")
    chosen = evaluate.subjects(lake, policy.named())
    found = [(one, _compare(lake, one, old, new, policy, seed)) for one in chosen]
    verdicts = settle(policy, found)
    counted = [one for one in verdicts if one.standing != "watched"]
    outcomes = {one.outcome for one in counted}
    outcome = next((o for o in ("failed", "undecided") if o in outcomes), "passed")
    blocks = any(one.blocks for one in verdicts)
    verdict = Verdict(secrets.token_hex(4), new.id, old.id, outcome, blocks, policy, verdicts)
    _record(lake, verdict)
    return verdict


def settle(policy: Policy, found: Sequence[tuple[Slice, tuple[Pair, Metric, Comparison | None]]]) -> list[SliceVerdict]:
    """The outcomes of slices that were compared, tested together."""
    standings = [policy.standing(one.name, one.role) for one, _ in found]
    family = [
        place for place, (_, (_, _, seen)) in enumerate(found) if standings[place] != "watched" and seen is not None
    ]
    ps = [seen.p for place in family if (seen := found[place][1][2]) is not None]
    adjusted = dict(zip(family, statistics.holm(ps), strict=True))
    verdicts = []
    for place, (made, (two, metric, seen)) in enumerate(found):
        standing, margin = standings[place], policy.margin_of(made.name)
        p = None if seen is None else adjusted.get(place, seen.p)
        outcome, needed = "undecided", None
        if seen is not None and p is not None:
            # A fall within the margin can be shown by enough images: it is a fall all the same.
            outcome = "failed" if p <= policy.fail_level else "passed" if seen.excluded else "undecided"
            if outcome == "undecided":
                level = policy.fail_level / max(1, len(family))
                needed = paired_tests.images_needed(seen.fall, seen.spread, margin, level, seen.unseen)
                needed = None if needed is None else max(needed, len(two.names) + 1)
        blocks = standing != "watched" and (
            outcome == "failed" or (outcome == "undecided" and policy.undecided_blocks(made.name, made.role))
        )
        wrong, right = changed(metric, two)
        verdicts.append(
            SliceVerdict(
                made.id,
                made.role,
                standing,
                metric.name,
                margin,
                len(two.names),
                _known(metric, two.old),
                _known(metric, two.new),
                None if seen is None else seen.fall,
                None if seen is None else seen.most,
                None if seen is None else seen.p,
                adjusted.get(place),
                outcome,
                blocks,
                needed,
                wrong,
                right,
            )
        )
    return sorted(verdicts, key=lambda v: (not v.blocks, -math.inf if v.fall is None else -v.fall, v.slice))


def compare(
    metric: Metric,
    old: EvaluatedPredictions,
    new: EvaluatedPredictions,
    margin: float,
    level: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """Two models' answers to the same images. `level`: chance of excluding a fall that is there.

    Accuracy: exact McNemar and the exact unconditional bound. Balanced accuracy: the same by class. Any other metric:
    the paired permutation test and the paired bootstrap, widened by what n images can have failed to show.
    """
    if metric.name == "accuracy":
        return _of_accuracy(_right(old), _right(new), margin, level)
    if metric.name == "balanced_accuracy":
        return _of_classes(old.ground_truth, _right(old), _right(new), margin, level, seed)
    sign = 1.0 if metric.higher_is_better else -1.0
    fall = sign * (metric.value(old) - metric.value(new))
    draws = -sign * bootstrap.differences(metric, old, new, seed=seed)
    draws = draws[np.isfinite(draws)]
    n = len(old)
    # The bootstrap's spread is too small by the square root of (n - 1) / n.
    grown = math.sqrt(n / (n - 1)) if n > 1 else math.inf
    deviation = float(draws.std()) * grown if len(draws) and n > 1 else math.inf
    z = NormalDist().inv_cdf(1 - level)
    above = max(float(np.quantile(draws, 1 - level)) - fall, z * deviation) if math.isfinite(deviation) else math.inf
    unseen = _unseen(metric, old, level)
    most = fall + math.hypot(above, unseen)
    p = bootstrap.swap_test(metric, old, new, seed=seed)
    return Comparison(fall, most, most <= margin, p, deviation * math.sqrt(n), unseen * n / 3.0)


def _of_accuracy(old: np.ndarray, new: np.ndarray, margin: float, level: float) -> Comparison:
    n, broken, repaired = len(old), int((old & ~new).sum()), int((new & ~old).sum())
    fall = (broken - repaired) / n
    excluded = paired_tests.beyond_p(broken, repaired, n, margin) <= level
    most = paired_tests.upper_bound(broken, repaired, n, level)
    # `most` is known to 1e-4: it must not say another thing than the test at the margin itself.
    most = min(most, margin) if excluded else max(most, math.nextafter(margin, math.inf))
    disagreed = (broken + repaired + 1) / (n + 2)
    return Comparison(
        fall, most, excluded, paired_tests.fall_p(broken, repaired), math.sqrt(disagreed - fall**2 / 2), 1.0
    )


def _of_classes(
    truth: np.ndarray, old: np.ndarray, new: np.ndarray, margin: float, level: float, seed: int
) -> Comparison:
    places = [np.flatnonzero(truth == k) for k in np.unique(truth[truth >= 0])]
    cells = [(int((old & ~new)[at].sum()), int((new & ~old)[at].sum()), len(at)) for at in places]
    k, n = len(cells), len(truth)
    fall = float(sum((b - c) / size for b, c, size in cells)) / k
    most = paired_tests.upper_bound_of_classes(cells, level)
    variance = sum((b + c + 1) / (size + 2) / size for b, c, size in cells) / k**2
    unseen = max(n / (k * size) for _, _, size in cells)
    p = paired_tests.fall_p_of_classes(cells, seed)
    return Comparison(fall, most, most <= margin, p, math.sqrt(variance * n), unseen)


def _unseen(metric: Metric, found: EvaluatedPredictions, level: float) -> float:
    """How large a fall n images without a single change cannot exclude (the rule of three).

    A share 1 - level^(1/n) of images may be of a kind that was not seen, and go from right to wrong; where classes
    count alike, of each class's images.
    """
    n = len(found)
    if isinstance(metric, classification_metrics.MacroF1 | classification_metrics.Auroc):
        counts = np.bincount(found.ground_truth[found.ground_truth >= 0])
        shares = 1 - level ** (1 / counts[counts > 0])
        return float(np.sqrt((shares**2).sum())) / len(shares)
    scale: float = (
        metric.maximum if isinstance(metric, classification_metrics.Costs) else float(getattr(metric, "range", 1.0))
    )
    return float(scale * (1 - level ** (1 / n)))


def _compare(
    lake: Lake, made: Slice, old: Run, new: Run, policy: Policy, seed: int
) -> tuple[Pair, Metric, Comparison | None]:
    metric = metric_registry.get(policy.metric_of(made.name, new.task), policy.costs or None)
    if new.task not in metric.tasks:
        raise BadInput(f"metric {metric.name} is for {' and '.join(metric.tasks)}; {made.id} is judged in {new.task}")
    two = pair(lake, made, old, new)
    known = two.names and all(np.isfinite(metric.value(one)) for one in (two.old, two.new))
    seen = compare(metric, two.old, two.new, policy.margin_of(made.name), policy.pass_level, seed) if known else None
    return two, metric, seen


def _baseline(lake: Lake, candidate: Run) -> Run:
    """What the candidate would replace: what is promoted; for a promoted candidate what was before it."""
    there = [one.run for one in versions.promotion_stack(lake, candidate.model)]
    chosen = next((one for one in reversed(there) if one != candidate.id), candidate.parent)
    if chosen is None:
        raise BadInput(f"no other version of {candidate.model} is promoted and run {candidate.id} has no parent: "
                       "name the run to compare with, --baseline RUN")  # fmt: skip
    return runs.get(lake, chosen)


def _record(lake: Lake, verdict: Verdict) -> None:
    facts = verdict.facts()
    row = {key: facts[key] for key in ("id", "candidate", "baseline", "outcome", "blocks")}
    row |= {"policy": verdict.policy.json(), "slices": json.dumps(facts["slices"]), "at": store.now()}
    lake.insert("gates", pa.Table.from_pylist([row], schema=schema.GATES.arrow()))


def _right(found: EvaluatedPredictions) -> np.ndarray:
    right: np.ndarray = (found.ground_truth == found.predicted) & (found.ground_truth >= 0)
    return right


def _known(metric: Metric, found: EvaluatedPredictions) -> float | None:
    value = metric.value(found) if len(found) else math.nan
    return value if math.isfinite(value) else None
