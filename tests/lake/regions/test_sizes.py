"""Areas of masks from their run lengths, and boxes matched to labels, against counting pixels."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as some

from lake.analytics import detection
from lake.open_lake import OpenLake
from lake.regions import masks
from lake.regions.sizes import bucket, mask_areas
from lake.storage import store
from tests.lake.prediction_rows import add, image

DRAWN = some.tuples(some.integers(1, 40), some.integers(1, 40), some.integers(0, 2**32 - 1), some.floats(0, 1))


@given(some.lists(DRAWN, max_size=6))
def test_areas_are_the_pixels(drawn: list[tuple[int, int, int, float]]) -> None:
    drawn_masks = [np.random.default_rng(seed).random((height, width)) < share for height, width, seed, share in drawn]
    counts = pa.array([masks.encode(mask) for mask in drawn_masks], pa.string())
    assert mask_areas(counts).tolist() == [int(mask.sum()) for mask in drawn_masks]


def test_sizes_are_cocos() -> None:
    assert bucket(np.array([0, 1_023, 1_024, 9_215, 9_216])).tolist() == [0, 0, 1, 1, 2]


def _box(x: float, y: float, side: float, label: str = "a", score: float | None = None) -> dict[str, object]:
    return {"label": label, "score": score, "x": x, "y": y, "width": side, "height": side}


def test_boxes_are_matched_best_score_first_once_and_in_their_class() -> None:
    truth = [_box(0, 0, 10), _box(100, 0, 10), _box(200, 0, 10, "b")]
    detections = [
        _box(1, 0, 10, score=0.5),
        _box(0, 0, 10, score=0.9),
        _box(100, 4, 10, score=0.8),
        _box(200, 0, 10, score=1),
    ]
    # The second takes the first label; the third overlaps 6 / 14 only; the fourth is of another class.
    assert detection.match(truth, detections) == [-1, 0, -1, -1]
    assert detection.match([], detections) == [-1] * 4
    assert detection.match(truth, []) == []


def test_precision_and_recall_by_size(lk: OpenLake) -> None:
    truth = {image(0): [_box(0, 0, 20), _box(50, 50, 40)], image(1): [], image(2): [_box(0, 0, 200)]}
    rows = [
        {
            "event_id": image_name,
            "image_id": image_name,
            "timestamp": store.now(),
            "task": "detection",
            "origin": "human",
            "boxes": boxes,
        }
        for image_name, boxes in truth.items()
    ]
    lk.insert("labels", pa.Table.from_pylist(rows, schema=lk.dataset("labels").schema))
    add(
        lk,
        [
            {"image_id": image(0), "boxes": [_box(0, 0, 20, score=0.9), _box(300, 0, 50, score=0.3)]},
            {"image_id": image(1), "boxes": [_box(0, 0, 10, score=0.8)]},  # the label says there is nothing
            {"image_id": image(2), "boxes": []},
            {"image_id": image(3), "boxes": [_box(0, 0, 10, score=0.8)]},  # no label says anything
        ],
    )
    small, medium, large = detection.boxes(lk)
    assert (small.boxes, small.predictions, small.confidence) == (3, 3, pytest.approx(2.5 / 3))
    assert (small.precision.value, small.precision.n, small.recall.value) == (0.5, 2, 1.0)
    assert (medium.boxes, medium.precision.value, medium.recall.value, medium.recall.n) == (1, 0.0, 0.0, 1)
    assert (large.boxes, large.confidence, large.precision.n, large.recall.value) == (0, None, 0, 0.0)
    assert detection.boxes(lk, score_from=0.5)[1].boxes == 0
    assert [size.boxes for size in detection.boxes(lk, f"image_id = '{image(1)}'")] == [1, 0, 0]


def test_neither_a_crowd_region_nor_an_incomplete_label_makes_a_detection_wrong(lk: OpenLake) -> None:
    label = {"timestamp": store.now(), "task": "detection", "origin": "import", "boxes": [_box(0, 0, 10)]}
    rows = [
        label | {"event_id": "whole", "image_id": image(0), "crowd_boxes": [_box(100, 100, 50)]},
        label | {"event_id": "partly", "image_id": image(1), "incomplete": True},
    ]
    lk.insert("labels", pa.Table.from_pylist(rows, schema=lk.dataset("labels").schema))
    said = [_box(0, 0, 10, score=0.9), _box(105, 105, 10, score=0.8), _box(300, 300, 10, score=0.7)]
    add(lk, [{"image_id": image(0), "boxes": said[:2]}, {"image_id": image(1), "boxes": said}])
    small = detection.boxes(lk)[0]
    assert (small.precision.value, small.precision.n, small.recall.n) == (1.0, 1, 1)
