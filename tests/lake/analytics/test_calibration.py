"""Calibration on answers counted by hand, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from lake.analytics.calibration import calibration, of_cells
from lake.storage.store import Lake, now
from tests.conftest import Say
from tests.lake.answers import add, image, label


def test_ece_by_hand(lk: Lake) -> None:
    add(
        lk, [{"label": "a", "confidence": c, "image_id": image(n)} for n, c in enumerate((0.55, 0.55, 0.95, 0.95, 0.7))]
    )
    label(lk, (image(0), "a", now()), (image(1), "b", now()), (image(2), "a", now()), (image(3), "a", now()))
    found = calibration(lk)
    assert (found.n, found.confidence, found.accuracy.value) == (4, pytest.approx(0.75), 0.75)
    assert found.equal_width is not None
    # |0.5 - 0.55| and |1 - 0.95|, each half of the answers.
    assert found.equal_width.ece == pytest.approx(0.05)
    assert [(one.low, one.confidence, one.accuracy.n) for one in found.equal_width.bins] == [
        (0.5, pytest.approx(0.55), 2),
        (0.9, pytest.approx(0.95), 2),
    ]
    assert calibration(lk, "confidence > 2").equal_width is None


def _cells(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, ...]:
    cell = np.minimum((sure * 1000).astype(int), 999)
    n, hits = np.bincount(cell, minlength=1000), np.bincount(cell, right, minlength=1000).astype(int)
    kept = n > 0
    return np.flatnonzero(kept), n[kept], hits[kept], np.bincount(cell, sure, minlength=1000)[kept]


def test_intervals_hold_the_true_error_and_chance_bounds_the_calibrated(say: Say) -> None:
    held = bounded = 0
    many = np.random.default_rng(0).beta(4, 1.5, 400_000)
    true = of_cells(*_cells(many, np.random.default_rng(1).random(len(many)) < many**2))
    assert true.equal_width is not None
    for seed in range(15):
        rng = np.random.default_rng(seed)
        sure = rng.beta(4, 1.5, 500)
        over = of_cells(*_cells(sure, rng.random(500) < sure**2), seed).equal_width
        honest = of_cells(*_cells(sure, rng.random(500) < sure), seed).equal_width
        assert over is not None
        assert honest is not None
        held += over.low <= true.equal_width.ece <= over.high
        bounded += honest.ece <= honest.by_chance
    say(f"calibration: the interval held the true ECE in {held} of 15, chance bounded a calibrated model in {bounded}")
    assert held >= 12
    assert bounded >= 12
