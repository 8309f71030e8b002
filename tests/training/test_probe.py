"""The logistic head: two islands are told apart, and the metrics are what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from lake.errors import BadInput
from training import probe


def test_two_islands_are_told_apart() -> None:
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


def test_one_class_is_no_task() -> None:
    with pytest.raises(BadInput, match="two classes"):
        probe.fit(np.eye(2), ["a", "a"])


def test_balanced_accuracy_of_the_commoner_class_is_one_half() -> None:
    truth = ["sound"] * 9 + ["broken"]
    said = ["sound"] * 10
    assert probe.accuracy(said, truth) == 0.9
    assert probe.balanced_accuracy(said, truth) == 0.5
