"""Metrics: examples a reader checks in the head, and scikit-learn's word on random ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from lake.analytics.calibration import of_cells
from lake.errors import BadInput
from tests.conftest import Say
from training.metrics import bootstrap, detection_metrics, metric, metric_registry
from training.metrics.metric import EvaluatedPredictions


def of_labels(truth: str, predicted: str, sure: float | None = None) -> EvaluatedPredictions:
    """A letter an image; - is no answer."""
    predictions = [{"label": None if one == "-" else one, "confidence": sure} for one in predicted]
    return EvaluatedPredictions.of([{"label": one} for one in truth], predictions)


def drawn(n: int, classes: int = 5, seed: int = 0) -> tuple[EvaluatedPredictions, np.ndarray, np.ndarray, np.ndarray]:
    """Random truths (codes), chances (n, classes) and the answers they give."""
    rng = np.random.default_rng(seed)
    names = [f"c{k}" for k in range(classes)]
    truth = rng.integers(0, classes, n)
    probabilities = rng.dirichlet(np.ones(classes), n)
    probabilities[np.arange(n), truth] += 0.3
    probabilities = np.round(probabilities / probabilities.sum(axis=1, keepdims=True), 2)  # with ties
    predicted = probabilities.argmax(axis=1)
    predictions = [
        {"label": names[k], "confidence": row[k], "scores": [{"label": a, "score": b} for a, b in zip(names, row)]}  # noqa: B905
        for k, row in zip(predicted, probabilities.tolist(), strict=True)
    ]
    return EvaluatedPredictions.of([{"label": names[k]} for k in truth], predictions), truth, predicted, probabilities


@pytest.mark.parametrize(
    ("name", "truth", "predicted", "value"),
    [
        ("accuracy", "aaab", "aaaa", 0.75),
        ("accuracy", "ab", "-b", 0.5),
        ("balanced_accuracy", "aaab", "aaaa", 0.5),
        ("balanced_accuracy", "aabb", "abbb", 0.75),
        ("f1_macro", "aabb", "abbb", (2 / 3 + 4 / 5) / 2),
        ("f1_macro", "aab", "aac", 1 / 3),  # a: 1, b and c: 0
    ],
)
def test_by_hand(name: str, truth: str, predicted: str, value: float) -> None:
    assert metric_registry.get(name).value(of_labels(truth, predicted)) == pytest.approx(value)


def test_calibration_error_by_hand() -> None:
    # Both bins are off: sure 0.9 and right half the time, sure 0.6 and always right.
    evaluated = of_labels("aabb", "abbb")
    confident = EvaluatedPredictions(
        evaluated.classes,
        evaluated.ground_truth,
        evaluated.predicted,
        np.array([0.9, 0.9, 0.6, 0.6]),
        evaluated.ground_truth_rows,
        evaluated.prediction_rows,
    )
    assert metric_registry.get("ece").value(confident) == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
    assert not metric_registry.get("ece").higher_is_better


def test_the_metric_and_the_page_have_one_calibration_error() -> None:
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.random(500), np.arange(16) / 15])
    right = rng.random(len(confidence)) < confidence
    codes = np.zeros(len(confidence), np.int64)
    rows = [dict[str, str]()] * len(codes)
    evaluated = EvaluatedPredictions(("a", "b"), codes, np.where(right, 0, 1), confidence, rows, rows)
    cell = np.clip(np.ceil(confidence * 1500).astype(np.int64) - 1, 0, 1499)
    n, correct = np.bincount(cell, minlength=1500), np.bincount(cell, right, 1500).astype(np.int64)
    filled, total = n > 0, np.bincount(cell, confidence, 1500)
    page = of_cells(np.flatnonzero(filled), n[filled], correct[filled], total[filled])
    assert page.equal_width is not None
    assert metric_registry.get("ece").value(evaluated) == pytest.approx(page.equal_width.ece)


def test_costs_by_hand() -> None:
    matrix = {"defect": {"sound": 10.0}, "sound": {"defect": 2.0}}
    truths = [{"label": one} for one in ("defect", "defect", "sound", "sound")]
    predicted = [{"label": one} for one in ("sound", "defect", "defect", None)]
    assert metric_registry.get("cost", matrix).value(EvaluatedPredictions.of(truths, predicted)) == (10 + 0 + 2 + 2) / 4
    with pytest.raises(BadInput, match="cost matrix"):
        metric_registry.get("cost")
    with pytest.raises(BadInput, match="-1"):
        metric_registry.get("cost", {"a": {"b": -1.0}})


def test_scikit_learn_agrees() -> None:
    from sklearn import metrics as peer

    evaluated, truth, predicted, probabilities = drawn(600)
    assert metric_registry.get("f1_macro").value(evaluated) == pytest.approx(
        peer.f1_score(truth, predicted, average="macro")
    )
    assert metric_registry.get("balanced_accuracy").value(evaluated) == pytest.approx(
        peer.balanced_accuracy_score(truth, predicted)
    )
    areas = [peer.roc_auc_score(truth == k, probabilities[:, k]) for k in range(5)]
    assert metric_registry.get("auroc").value(evaluated) == pytest.approx(np.mean(areas))


def test_metrics_of_no_images_are_undefined() -> None:
    for name in metric_registry.BUILT_IN:
        assert bootstrap.estimate(metric_registry.get(name), of_labels("", "")).value is None


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "f1_macro", "ece", "auroc"])
def test_fast_resamples_spread_as_slow_ones_do(name: str) -> None:
    """Sums of kinds, weights, and images taken one by one are the same bootstrap."""
    evaluated, *_ = drawn(300, classes=3)
    metric, rng = metric_registry.get(name), np.random.default_rng(1)
    slow = np.array([metric.value(evaluated.take(rng.integers(0, 300, 300))) for _ in range(400)])
    fast = bootstrap.resampled(metric, evaluated, draws=400)
    assert fast.mean() == pytest.approx(slow.mean(), abs=4 * slow.std() / 20)
    assert fast.std() == pytest.approx(slow.std(), rel=0.2)


def test_ten_correct_of_ten_has_an_interval_below_one() -> None:
    for name in ("accuracy", "balanced_accuracy"):
        estimate = bootstrap.estimate(metric_registry.get(name), of_labels("aaaaabbbbb", "aaaaabbbbb"))
        assert estimate.value == estimate.high == 1.0
        assert estimate.low is not None
        assert estimate.low < 0.8


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    true_f1 = metric_registry.get("f1_macro").value(drawn(100_000, classes=2, seed=999)[0])
    covered = 0
    for seed in range(200):
        evaluated, *_ = drawn(150, classes=2, seed=seed)
        low, high = bootstrap.interval(
            bootstrap.resampled(metric_registry.get("f1_macro"), evaluated, draws=300, seed=seed)
        )
        covered += low <= true_f1 <= high
    assert 182 <= covered <= 199  # 95 % of 200 are 190


def test_swaps_find_a_fall_and_only_a_fall() -> None:
    truth = "ab" * 60
    worse = "bb" * 12 + "ab" * 48
    metric = metric_registry.get("f1_macro")
    old, new = of_labels(truth, truth), of_labels(truth, worse)
    assert bootstrap.swap_test(metric, old, new) < 0.005
    assert bootstrap.swap_test(metric, new, old) == 1.0
    assert bootstrap.swap_test(metric, old, old) == 1.0


@pytest.mark.parametrize("name", ["f1_macro", "auroc"])
def test_swap_test_is_as_rare_as_it_says(name: str) -> None:
    ps = []
    for seed in range(150):
        (old, *_), (new, *_) = drawn(40, 2, seed), drawn(40, 2, seed)
        other, *_ = drawn(40, 2, 10_000 + seed)
        # The same truths, answers of two equally good models.
        rng = np.random.default_rng(seed)
        flip = rng.random(40) < 0.5
        new = replace(
            new, predicted=other.predicted, confidence=other.confidence, prediction_rows=other.prediction_rows
        )
        mixed, rest = bootstrap._mixed(old, new, flip), bootstrap._mixed(old, new, ~flip)
        ps.append(bootstrap.swap_test(metric_registry.get(name), mixed, rest, draws=300, seed=seed))
    assert 1 <= np.sum(np.array(ps) <= 0.1) <= 28  # 10 % of 150 are 15


@pytest.mark.soak
def test_ten_thousand_images_a_thousand_draws(say: Say) -> None:
    evaluated, *_ = drawn(10_000, classes=10)
    for name in ("accuracy", "balanced_accuracy", "f1_macro", "ece"):
        started = perf_counter()
        bootstrap.resampled(metric_registry.get(name), evaluated, draws=1_000)
        seconds = perf_counter() - started
        say(f"bootstrap of {name}, 10,000 images x 1,000 draws: {seconds:.2f} s")
        assert seconds < 5  # about 0.3 s on a quiet core


def test_a_metric_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found through the entry point of an installed package; a function of the stored rows."""
    package = tmp_path / "site" / "ours-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[lakeloop.metrics]\nmisses = tests.training.own_metric:misses\n")
    monkeypatch.syspath_prepend(str(package.parent))
    metric = metric_registry.get("misses")
    evaluated = of_labels("aab", "abb")
    assert metric.value(evaluated) == 1.0
    assert not metric.higher_is_better
    assert "misses" in metric_registry.of_task("classification")
    assert bootstrap.estimate(metric, evaluated).high == 3.0
    with pytest.raises(BadInput, match="misses"):
        metric_registry.get("mises")


def test_overlap_and_precision_of_stored_rows() -> None:
    from lake.regions import masks

    left = np.zeros((4, 4), bool)
    left[:, :2] = True
    whole = np.ones((4, 4), bool)
    rows = [{"masks": [{"label": "a", "height": 4, "width": 4, "counts": masks.encode(m)}]} for m in (left, whole)]
    # a: 8 of 16 pixels; background: none of 8.
    evaluated = EvaluatedPredictions.of([rows[0]], [rows[1]])
    assert metric_registry.get("miou").value(evaluated) == pytest.approx((8 / 16 + 0) / 2)
    assert isinstance(metric_registry.get("miou"), metric.MetricOfSums)
    box = {"label": "a", "score": 0.9, "x": 0.0, "y": 0.0, "width": 4.0, "height": 4.0}
    half = box | {"height": 2.4}  # an overlap of 0.6
    evaluated = EvaluatedPredictions.of([{"boxes": [box]}], [{"boxes": [half]}])
    assert detection_metrics.MeanAveragePrecision50().value(evaluated) == pytest.approx(1.0)
    assert metric_registry.get("map").value(evaluated) == pytest.approx(0.3)  # right at 0.5, 0.55 and 0.6 of ten
