"""Mean average precision: worked examples, pycocotools on the same boxes, and resamples that re-rank only."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.metrics import detection_metrics

Boxes = list[list[dict[str, Any]]]


def box(label: str, x: float, y: float, width: float, height: float, score: float | None = None) -> dict[str, Any]:
    return {"label": label, "score": score, "x": x, "y": y, "width": width, "height": height}


def drawn(seed: int, images: int = 12, classes: str = "abc") -> tuple[Boxes, Boxes]:
    """Images with boxes of all sizes, some empty, and answers: moved, doubled, of a wrong class, invented."""
    rng = np.random.default_rng(seed)
    truths: Boxes = []
    predictions: Boxes = []
    for _ in range(images):
        true = [
            box(str(rng.choice([*classes])), *rng.uniform(0, 200, 2).round(1), *np.exp(rng.uniform(2, 5.3, 2)).round(1))
            for _ in range(rng.integers(0, 6))
        ]
        predicted = []
        for one in true:
            for _ in range(rng.integers(0, 3)):
                # Few different scores: ties must be broken as pycocotools breaks them.
                label = one["label"] if rng.random() < 0.85 else str(rng.choice([*classes, "z"]))
                shift = rng.normal(0, 0.08, 4) * [one["width"], one["height"], one["width"], one["height"]]
                predicted.append(
                    box(label, one["x"] + shift[0], one["y"] + shift[1], one["width"] * np.exp(rng.normal(0, 0.1)),
                        one["height"] * np.exp(rng.normal(0, 0.1)), float(rng.integers(1, 10)) / 10)
                )  # fmt: skip
        if rng.random() < 0.5:
            predicted.append(box(str(rng.choice([*classes])), 5, 5, 40, 40, float(rng.random())))
        truths.append(true)
        predictions.append(predicted)
    return truths, predictions


def with_crowds(seed: int) -> tuple[Boxes, Boxes, Boxes]:
    """`drawn`, and a third of the true boxes as crowd regions, grown to hold several predictions."""
    rng = np.random.default_rng(seed)
    truths, predictions = drawn(seed)
    crowds: Boxes = []
    for true in truths:
        regions = [b for b in true if rng.random() < 0.35]
        true[:] = [b for b in true if b not in regions]
        crowds.append([b | {"width": b["width"] * 1.7, "height": b["height"] * 1.4} for b in regions])
    return truths, predictions, crowds


def by_pycocotools(truths: Boxes, predictions: Boxes, crowds: Boxes | None = None) -> Any:
    """COCOeval after accumulate and summarize."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = sorted({b["label"] for boxes in truths for b in boxes})
    number = {name: k + 1 for k, name in enumerate(names)}
    predicted = [b | {"image_id": i} for i, boxes in enumerate(predictions) for b in boxes if b["label"] in number]

    def row(b: dict[str, Any], i: int, k: int) -> dict[str, Any]:
        where = [b["x"], b["y"], b["width"], b["height"]]
        return {"id": k + 1, "image_id": i, "category_id": number[b["label"]], "bbox": where,
                "iscrowd": int("crowd" in b), "area": b["width"] * b["height"]}  # fmt: skip

    regions = [[b | {"crowd": True} for b in boxes if b["label"] in number] for boxes in crowds or [[] for _ in truths]]
    true = [(b, i) for i, boxes in enumerate(truths) for b in [*boxes, *regions[i]]]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(len(truths))],
            "annotations": [row(b, i, k) for k, (b, i) in enumerate(true)],
            "categories": [{"id": k, "name": name} for name, k in number.items()],
        }
        coco.createIndex()
        precisions = coco.loadRes([row(b, b["image_id"], k) | {"score": b["score"]} for k, b in enumerate(predicted)])
        evaluation = COCOeval(coco, precisions, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pycocotools_with_crowd_regions(seed: int) -> None:
    truths, predictions, crowds = with_crowds(seed)
    precisions = detection_metrics.match(truths, predictions, crowds).average_precisions()
    want = by_pycocotools(truths, predictions, crowds).stats[[0, 1, 2, 3, 4, 5]]
    assert np.nan_to_num([*precisions.means().values()], nan=-1) == pytest.approx(want, abs=1e-9)
    assert np.isfinite(precisions.map)


def test_a_prediction_in_a_crowd_is_neither_right_nor_wrong() -> None:
    truths, crowds = [[box("a", 0, 0, 10, 10)]], [[box("a", 50, 50, 40, 40)]]
    predictions = [[box("a", 55, 55, 10, 10, 0.9), box("a", 70, 70, 10, 10, 0.8), box("a", 0, 0, 10, 10, 0.7)]]
    assert detection_metrics.match(truths, predictions, crowds).average_precisions().map == pytest.approx(1.0)
    assert detection_metrics.match(truths, predictions).average_precisions().map == pytest.approx(1 / 3, abs=1e-9)
    anything = [[box("a", 50, 50, 40, 40) | {"label": None}]]
    assert detection_metrics.match(truths, predictions, anything).average_precisions().map == pytest.approx(1.0)


def test_two_found_one_missed_one_invented() -> None:
    truths = [[box("cat", 0, 0, 10, 10), box("cat", 20, 0, 10, 10)], [box("cat", 0, 0, 10, 10)]]
    predictions = [[box("cat", 0, 0, 10, 10, 0.9), box("cat", 50, 50, 10, 10, 0.8)], [box("cat", 0, 0, 10, 10, 0.7)]]
    precisions = detection_metrics.match(truths, predictions).average_precisions()
    # Recall 1/3 at precision 1 (34 of the 101 recalls), 2/3 at 2/3 (33 more), then nothing.
    assert precisions.map_50 == pytest.approx((34 + 33 * 2 / 3) / 101, abs=1e-12)
    assert precisions.map == pytest.approx(precisions.map_50)
    assert precisions.map_small == pytest.approx(precisions.map_50)
    assert np.isnan(precisions.map_large)
    assert precisions.by_class_50 == {"cat": pytest.approx(precisions.map_50)}


def test_overlap_decides_the_threshold() -> None:
    # 8 of 10 columns: intersection over union 0.8; right at 0.50 ... 0.80, wrong at 0.85, 0.90, 0.95.
    precisions = detection_metrics.match(
        [[box("a", 0, 0, 10, 10)]], [[box("a", 0, 0, 8, 10, 1.0)]]
    ).average_precisions()
    assert (precisions.map_50, precisions.map_75, precisions.map) == pytest.approx((1.0, 1.0, 0.7))


def test_the_second_box_on_a_thing_is_wrong() -> None:
    twice = [[box("a", 0, 0, 10, 10, 0.9), box("a", 0, 0, 10, 10, 0.8)], [box("a", 0, 0, 10, 10, 0.7)]]
    precisions = detection_metrics.match([[box("a", 0, 0, 10, 10)]] * 2, twice).average_precisions()
    assert precisions.map_50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_no_predictions_and_no_true_boxes() -> None:
    assert detection_metrics.match([[box("a", 0, 0, 10, 10)]], [[]]).average_precisions().map == 0.0
    empty = detection_metrics.match([[]], [[box("a", 0, 0, 10, 10, 0.9)]]).average_precisions()
    assert np.isnan(empty.map)
    assert empty.by_class == {}


def test_a_class_that_no_image_has_counts_in_no_mean() -> None:
    truths, predictions = [[box("a", 0, 0, 10, 10)]], [[box("a", 0, 0, 10, 10, 0.5), box("b", 0, 0, 10, 10, 0.9)]]
    assert detection_metrics.match(truths, predictions).average_precisions().map == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_pycocotools(seed: int) -> None:
    truths, predictions = drawn(seed, images=4 + seed)
    want = by_pycocotools(truths, predictions)
    precisions = detection_metrics.match(truths, predictions).average_precisions()
    actual = [
        precisions.map,
        precisions.map_50,
        precisions.map_75,
        precisions.map_small,
        precisions.map_medium,
        precisions.map_large,
    ]
    expected = [np.nan if v == -1 else v for v in want.stats[:6]]
    assert actual == pytest.approx(expected, abs=1e-9, nan_ok=True)
    table = want.eval["precision"][:, :, :, 0, 2].mean(axis=(0, 1))
    assert [*precisions.by_class.values()] == pytest.approx([v for v in table if v > -1], abs=1e-9)


def test_more_detections_than_count_are_passed_over() -> None:
    pytest.importorskip("pycocotools")
    truths = [[box("a", 0, 0, 50, 50)]]
    predictions = [
        [box("a", 100, 100, 50, 50, 0.9)] * detection_metrics.MOST_DETECTIONS + [box("a", 0, 0, 50, 50, 0.1)]
    ]
    assert (
        detection_metrics.match(truths, predictions).average_precisions().map
        == by_pycocotools(truths, predictions).stats[0]
        == 0.0
    )


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_weights_are_copies_of_images(seed: int, times: list[int]) -> None:
    truths, predictions = drawn(seed, images=6)
    rng = np.random.default_rng(seed)
    for b in (b for boxes in predictions for b in boxes):  # which of an image's equally sure boxes comes first is open
        b["score"] = float(rng.random())
    once = detection_metrics.match(truths, predictions)
    copied = [(t, a) for t, a, n in zip(truths, predictions, times, strict=True) for _ in range(n)]
    again = detection_metrics.match([t for t, _ in copied], [a for _, a in copied])
    want, got = again.average_precisions().means(), once.average_precisions(np.array(times)).means()
    assert [*got.values()] == pytest.approx([*want.values()], abs=1e-12, nan_ok=True)
    assert once.map(np.array(times)) == pytest.approx(want["map"], abs=1e-12, nan_ok=True)
    assert once.map_50(np.array(times)) == pytest.approx(want["map_50"], abs=1e-12, nan_ok=True)


def test_rows_and_weights_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 images with true boxes, 1 with predictions"):
        detection_metrics.match([[], []], [[]])
    with pytest.raises(ValueError, match="not one for each of 1 images"):
        detection_metrics.match([[]], [[]]).map(np.ones(3))
