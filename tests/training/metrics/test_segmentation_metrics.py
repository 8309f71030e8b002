"""Intersection over union: worked examples, scikit-learn on the same pixels, resamples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from lake.errors import BadInput
from lake.regions import masks
from training.metrics import segmentation_metrics
from training.metrics.metric import EvaluatedPredictions
from training.metrics.segmentation_metrics import IGNORED


def test_half_of_a_square_predicted() -> None:
    truth, predicted = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    truth[:, :2] = 1
    predicted[:, 1:3] = 1
    overlaps = segmentation_metrics.compare([truth], [predicted], ["cat"])
    # cat: 2 pixels of 6; background: 2 of 6.
    assert overlaps.by_class() == pytest.approx({"background": 1 / 3, "cat": 1 / 3})
    assert overlaps.miou() == pytest.approx(1 / 3)


def test_ignored_pixels_do_not_count() -> None:
    truth = np.array([[0, 1, IGNORED, IGNORED]], np.uint8)
    predicted = np.array([[0, 1, 1, 0]], np.uint8)
    assert segmentation_metrics.compare([truth], [predicted], ["cat"]).miou() == 1.0


def test_a_class_that_does_not_occur_counts_in_no_mean() -> None:
    truth = np.array([[0, 1]], np.uint8)
    overlaps = segmentation_metrics.compare([truth], [truth], ["cat", "dog"])
    assert overlaps.by_class() == {"background": 1.0, "cat": 1.0}
    predicted = np.array([[0, 2]], np.uint8)  # said where it is not: it counts
    assert segmentation_metrics.compare([truth], [predicted], ["cat", "dog"]).by_class() == {
        "background": 1.0,
        "cat": 0.0,
        "dog": 0.0,
    }
    assert np.isnan(
        segmentation_metrics.compare([np.full((1, 2), IGNORED, np.uint8)], [predicted], ["cat", "dog"]).miou()
    )


def test_equal_to_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (5, 8, 9)).astype(np.uint8), rng.integers(0, 4, (5, 8, 9)).astype(np.uint8)
    overlaps = segmentation_metrics.compare([*truth], [*predicted], ["a", "b", "c"])
    want = jaccard_score(truth.ravel(), predicted.ravel(), average=None)
    assert [*overlaps.by_class().values()] == pytest.approx(want, abs=1e-12)


def test_weights_are_copies_of_images() -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(0, 3, (4, 6, 6)).astype(np.uint8), rng.integers(0, 3, (4, 6, 6)).astype(np.uint8)
    times = [2, 0, 1, 3]
    again = segmentation_metrics.compare(
        list(truth.repeat(times, axis=0)), list(predicted.repeat(times, axis=0)), ["a", "b"]
    )
    assert segmentation_metrics.compare([*truth], [*predicted], ["a", "b"]).miou(np.array(times)) == pytest.approx(
        again.miou(), abs=1e-12
    )
    with pytest.raises(ValueError, match="not one for each of 4 images"):
        segmentation_metrics.compare([*truth], [*predicted], ["a", "b"]).miou(np.ones(3))


def test_masks_become_a_map() -> None:
    low, high = np.zeros((4, 6), bool), np.zeros((4, 6), bool)
    low[2:], high[:, :3] = True, True
    rows = [{"label": n, "score": None, "height": 4, "width": 6, "counts": masks.encode(m)}
            for n, m in (("low", low), ("other", ~low), ("high", high))]  # fmt: skip
    class_map = segmentation_metrics.class_map(rows, ["high", "low"], 6, 4)
    assert class_map[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert class_map[3].tolist() == [1, 1, 1, 2, 2, 2]
    assert (
        segmentation_metrics.class_map(rows, ["high", "low"], 6, 4, ignored=["other"])[0].tolist()
        == [1, 1, 1] + [IGNORED] * 3
    )
    with pytest.raises(BadInput, match="do not add up"):
        segmentation_metrics.class_map(rows, ["low"], 7, 4)


def test_maps_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="the prediction"):
        segmentation_metrics.confusion(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 2)


def test_pixels_of_a_crowd_region_do_not_count() -> None:
    left, right = np.zeros((2, 4), bool), np.zeros((2, 4), bool)
    left[:, :2], right[:, 2:] = True, True

    def row(mask: np.ndarray) -> list[dict[str, Any]]:
        return [{"label": "cat", "height": 2, "width": 4, "counts": masks.encode(mask)}]

    everywhere = row(left | right)
    for crowd in ({"crowd_masks": row(right)}, {"crowd_boxes": [{"x": 2, "y": 0, "width": 2, "height": 2}]}):
        evaluated = EvaluatedPredictions.of([{"masks": row(left), **crowd}], [{"masks": everywhere}])
        assert segmentation_metrics.MeanIou().value(evaluated) == 1.0
    without = EvaluatedPredictions.of([{"masks": row(left)}], [{"masks": everywhere}])
    assert segmentation_metrics.MeanIou().value(without) == pytest.approx(0.25)  # cat 4 of 8, background 0 of 4
