"""Calibration on predictions counted by hand, and the coverage of its intervals."""

from __future__ import annotations

import numpy as np
import pytest

from lake.analytics.calibration import bin_of, calibration, expected_calibration_error, of_cells
from lake.open_lake import OpenLake
from lake.storage.store import now
from tests.conftest import Say
from tests.lake.prediction_rows import add, image, label


def test_ece_by_hand(lk: OpenLake) -> None:
    add(
        lk, [{"label": "a", "confidence": c, "image_id": image(n)} for n, c in enumerate((0.55, 0.55, 0.95, 0.95, 0.7))]
    )
    label(lk, (image(0), "a", now()), (image(1), "b", now()), (image(2), "a", now()), (image(3), "a", now()))
    measured = calibration(lk)
    assert (measured.n, measured.confidence, measured.accuracy.value) == (4, pytest.approx(0.75), 0.75)
    assert measured.equal_width is not None
    # |0.5 - 0.55| and |1 - 0.95|, each half of the answers.
    assert measured.equal_width.ece == pytest.approx(0.05)
    assert [(bin_.low, bin_.confidence, bin_.accuracy.n) for bin_ in measured.equal_width.bins] == [
        (8 / 15, pytest.approx(0.55), 2),
        (14 / 15, pytest.approx(0.95), 2),
    ]
    assert calibration(lk, "confidence > 2").equal_width is None


def test_fifteen_bins_each_with_its_upper_edge() -> None:
    assert bin_of(np.array([0.0, 1 / 15, 0.067, 0.2, 0.201, 1.0])).tolist() == [0, 0, 1, 2, 3, 14]


def test_ece_of_sums_by_hand() -> None:
    # Of 4 predictions, those of one bin are correct 0.4 more often than they claim, those of another 0.4 less.
    assert expected_calibration_error(np.array([0.8, -0.8, 0.0]), 4) == pytest.approx(0.4)
    assert np.isnan(expected_calibration_error(np.zeros((2, 3)), np.zeros(2))).all()


def _cells(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    cell = np.clip(np.ceil(sure * 1500).astype(int) - 1, 0, 1499)
    n, hits = np.bincount(cell, minlength=1500), np.bincount(cell, right, minlength=1500).astype(int)
    filled = n > 0
    return np.flatnonzero(filled), n[filled], hits[filled], np.bincount(cell, sure, minlength=1500)[filled]


def test_intervals_cover_the_true_error_and_chance_bounds_a_calibrated_model(say: Say) -> None:
    covered = below = 0
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
        covered += over.low <= true.equal_width.ece <= over.high
        below += honest.ece <= honest.by_chance
    say(f"calibration: interval covers the true ECE in {covered} of 15, chance bounds a calibrated model in {below}")
    assert covered >= 12
    assert below >= 12
