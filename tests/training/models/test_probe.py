"""The logistic head: two islands are told apart, and the optimum is scikit-learn's, to six digits of the loss."""

from __future__ import annotations

import numpy as np
import pytest

from lake.errors import BadInput
from training.metrics import classification_metrics
from training.models import probe
from training.models.probe import Probe


def clouds(n: int, dim: int, classes: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors float32 about as many centres, and their classes; one in twenty has another's."""
    rng = np.random.default_rng(seed)
    centres, codes = rng.standard_normal((classes, dim)), rng.integers(0, classes, n)
    x = centres[codes] + noise * rng.standard_normal((n, dim)) + 0.5
    codes = np.where(rng.random(n) < 0.05, rng.integers(0, classes, n), codes)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), codes


def objective(head: Probe, x: np.ndarray, codes: np.ndarray, penalty: float, each: np.ndarray | None = None) -> float:
    """What scikit-learn minimises times 1 / C; for two classes it penalises the columns' difference alone."""
    chances = head.probabilities(x)
    each = np.ones(len(codes)) if each is None else each
    w = head.weights if len(head.classes) > 2 else (head.weights[:, 1] - head.weights[:, 0])
    return float(-(each * np.log(chances[np.arange(len(codes)), codes])).sum() + penalty / 2 * (w**2).sum())


def names(codes: np.ndarray) -> list[str]:
    return [f"c{k:02d}" for k in codes]


def test_two_clusters_are_separated() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal([1, 0], 0.1, (20, 2)), rng.normal([0, 1], 0.1, (20, 2))])
    head = probe.fit(points, ["east"] * 20 + ["north"] * 20)
    assert head.classes == ("east", "north")
    chances = head.probabilities(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert chances.sum(axis=1) == pytest.approx(1.0)
    assert chances[0, 0] > 0.9
    assert chances[1, 1] > 0.9


def test_three_classes() -> None:
    points = np.eye(3).repeat(5, axis=0)
    head = probe.fit(points, ["a"] * 5 + ["b"] * 5 + ["c"] * 5)
    assert head.probabilities(np.eye(3)).argmax(axis=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("n", "dim", "classes", "penalty"),
    [(400, 16, 5, 0.1), (300, 16, 2, 0.01), (60, 90, 4, 0.5), (50, 80, 2, 0.1)],
)
def test_the_optimum_is_scikit_learns(n: int, dim: int, classes: int, penalty: float) -> None:
    """More vectors than dimensions and fewer; two classes and several."""
    agrees(n, dim, classes, penalty)


def test_in_single_precision_and_by_stages_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SINGLE_FROM", 0)
    monkeypatch.setattr(probe, "SMALLEST_STAGE", 100)
    agrees(4_000, 40, 6, 1.0)


def agrees(n: int, dim: int, classes: int, penalty: float) -> None:
    from sklearn.linear_model import LogisticRegression

    x, codes = clouds(n, dim, classes, 1.5)
    ours = probe.fit(x, names(codes), penalty)
    peer = LogisticRegression(C=1 / penalty, max_iter=5_000, tol=1e-8).fit(x.astype(np.float64), codes)
    theirs = -float(np.log(peer.predict_proba(x.astype(np.float64))[np.arange(n), codes]).sum())
    theirs += penalty / 2 * float((peer.coef_**2).sum())
    assert objective(ours, x, codes, penalty) <= theirs * (1 + 1e-6)
    assert objective(ours, x, codes, penalty) >= theirs * (1 - 1e-5)
    predicted = ours.probabilities(x).argmax(axis=1)
    assert (predicted == peer.predict(x.astype(np.float64))).mean() > 0.998


def test_weights_mean_so_many_copies() -> None:
    x, codes = clouds(120, 8, 3, 1.0)
    times = np.random.default_rng(1).integers(1, 4, 120)
    weighted = probe.fit(x, names(codes), 0.1, weights=times)
    copied = probe.fit(x.repeat(times, axis=0), names(codes.repeat(times)), 0.1)
    # The loss is flat at its optimum: six equal digits of it are three of the weights.
    assert weighted.probabilities(x) == pytest.approx(copied.probabilities(x), abs=2e-3)


def test_balancing_raises_the_recall_of_the_rare_class() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, (300, 2)), rng.normal(1.5, 1, (15, 2))])
    truth = ["sound"] * 300 + ["broken"] * 15
    plain, fair = probe.fit(x, truth), probe.fit(x, truth, balanced=True)
    predicted = [[h.classes[k] for k in h.probabilities(x).argmax(axis=1)] for h in (plain, fair)]
    assert (
        classification_metrics.balanced_accuracy(predicted[1], truth)
        > classification_metrics.balanced_accuracy(predicted[0], truth) + 0.05
    )


def test_a_warm_start_ends_where_a_cold_one_does() -> None:
    x, codes = clouds(500, 12, 4, 1.0)
    cold = probe.fit(x, names(codes), 0.1)
    warm = probe.fit(x, names(codes), 0.1, start=probe.fit(x[:100], names(codes[:100]), 0.1))
    assert objective(warm, x, codes, 0.1) == pytest.approx(objective(cold, x, codes, 0.1), rel=1e-6)


def test_a_hidden_layer_learns_what_no_line_divides() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (800, 2))
    truth = ["same" if a * b > 0 else "other" for a, b in x]
    line, layer = probe.fit(x, truth), probe.fit(x, truth, 0.01, hidden=32)
    right = [(np.array(h.classes)[h.probabilities(x).argmax(axis=1)] == truth).mean() for h in (line, layer)]
    assert right[0] < 0.7
    assert right[1] > 0.93
    again = probe.fit(x, truth, 0.01, hidden=32)
    assert np.array_equal(layer.weights, again.weights)


def test_inputs_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(BadInput, match="two classes"):
        probe.fit(np.eye(2), ["a", "a"])
    with pytest.raises(BadInput, match="finite"):
        probe.fit(np.array([[np.nan, 0.0], [0.0, 1.0]]), ["a", "b"])
    with pytest.raises(BadInput, match="above 0"):
        probe.fit(np.eye(2), ["a", "b"], 0.0)
    with pytest.raises(BadInput, match="weight"):
        probe.fit(np.eye(2), ["a", "b"], weights=np.array([1.0, 0.0]))
    with pytest.raises(BadInput, match="begin"):
        probe.fit(np.eye(2), ["a", "b"], start=probe.fit(np.eye(3), ["a", "b", "b"]))


def test_balanced_accuracy_of_the_majority_baseline_is_one_half() -> None:
    truth = ["sound"] * 9 + ["broken"]
    predicted = ["sound"] * 10
    assert classification_metrics.accuracy(predicted, truth) == 0.9
    assert classification_metrics.balanced_accuracy(predicted, truth) == 0.5
