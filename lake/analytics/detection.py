"""Detections by size of object: counts, mean score, precision and recall against label boxes.

Boxes are matched as COCO does, at one threshold: within an image and a class, detections in the order of their score,
each to the free label box with the highest intersection over union, at least IOU. Images with a complete detection
label are evaluated, also if it has no boxes; each model's newest prediction counts. A detection inside a crowd region
is neither right nor wrong. Recall is by the size of the label's box.
Precision of a size counts detections matched to a label box of that size, against unmatched ones of that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lake.analytics.statistics import Rate, wilson
from lake.regions.boxes import areas, corners, intersection_over_union, share_inside
from lake.regions.boxes import match as match_boxes
from lake.regions.sizes import SIZES, bucket, bucket_sql, of_masks
from lake.sql import connections
from lake.sql.where import predicate

if TYPE_CHECKING:
    from lake.storage.store import Lake

IOU = 0.5
# What a detection is matched to if not to a label box.
UNMATCHED, IN_CROWD = -1, -2


@dataclass(frozen=True)
class SizeMetrics:
    """Detections of one size of object: how many, in how many predictions, their mean score (None: no scores); and, if
    labels have boxes, precision and recall at IOU.
    """

    size: str
    boxes: int
    predictions: int
    confidence: float | None
    precision: Rate
    recall: Rate


def boxes(lake: Lake, where: str | None = None, score_from: float = 0.0) -> list[SizeMetrics]:
    """By size of boxes: small, medium, large. Boxes with a score below `score_from` do not count; those without do."""
    rows = connections.query(
        lake,
        f"""
        WITH b AS (SELECT prediction_id, unnest(boxes) AS b FROM predictions
                   WHERE {predicate(where)} AND len(boxes) > 0)
        SELECT {bucket_sql("b.width * b.height")} AS size, count(*) AS boxes,
               count(DISTINCT prediction_id) AS predictions, avg(b.score) AS confidence
        FROM b WHERE coalesce(b.score, 1) >= {float(score_from)} GROUP BY size""",
    ).to_pylist()
    counts = {row["size"]: row for row in rows}
    precision, recall = _matched(lake, where, score_from)
    return [
        SizeMetrics(
            size,
            counts[size]["boxes"] if size in counts else 0,
            counts[size]["predictions"] if size in counts else 0,
            counts[size]["confidence"] if size in counts else None,
            precision[number],
            recall[number],
        )
        for number, size in enumerate(SIZES)
    ]


def masks(lake: Lake, where: str | None = None) -> list[SizeMetrics]:
    """By size of masks, in pixels; without precision and recall."""
    import pyarrow as pa
    import pyarrow.compute as pc

    prediction_ids = connections.query(
        lake, f"SELECT prediction_id FROM predictions WHERE {predicate(where)} AND len(masks) > 0"
    )["prediction_id"]
    table = of_masks(lake)
    table = table.filter(pc.is_in(table["prediction_id"], value_set=pa.array(prediction_ids.to_pylist(), pa.string())))
    sizes = bucket(table["areas"].combine_chunks().flatten().to_numpy(zero_copy_only=False))
    named = table["sizes"].combine_chunks().flatten().to_pylist()
    none = wilson(0, 0)
    return [
        SizeMetrics(size, int((sizes == number).sum()), named.count(size), None, none, none)
        for number, size in enumerate(SIZES)
    ]


def _matched(lake: Lake, where: str | None, score_from: float) -> tuple[list[Rate], list[Rate]]:
    """Precision and recall by size."""
    rows = connections.query(
        lake,
        f"""
        WITH t AS (SELECT image_id, boxes AS truth, crowd_boxes AS crowds FROM labels_current
                   WHERE task = 'detection' AND boxes IS NOT NULL AND incomplete IS NOT TRUE),
        a AS (SELECT image_id, boxes AS said FROM predictions
              WHERE {predicate(where)} AND boxes IS NOT NULL AND image_id IN (SELECT image_id FROM t)
              QUALIFY row_number() OVER (PARTITION BY image_id, model, model_version
                                         ORDER BY timestamp DESC NULLS LAST, ingested_at DESC, prediction_id) = 1)
        SELECT truth, said, crowds FROM a JOIN t USING (image_id)""",
    ).to_pylist()
    hits, wrong, missed = np.zeros(3, int), np.zeros(3, int), np.zeros(3, int)
    for row in rows:
        labels = row["truth"]
        selected = [
            detection for detection in row["said"] if detection["score"] is None or detection["score"] >= score_from
        ]
        matches = match(labels, selected, row["crowds"] or [])
        sizes, own_sizes = bucket(areas(corners(labels))), bucket(areas(corners(selected)))
        matched = np.array(sorted(set(matches) - {UNMATCHED, IN_CROWD}), int)
        hits += np.bincount(sizes[matched], minlength=3)
        missed += np.bincount(np.delete(sizes, matched), minlength=3)
        wrong += np.bincount(own_sizes[np.array(matches, int) == UNMATCHED], minlength=3)
    precision = [wilson(int(h), int(h + w)) for h, w in zip(hits, wrong, strict=True)]
    recall = [wilson(int(h), int(h + m)) for h, m in zip(hits, missed, strict=True)]
    return precision, recall


def match(
    ground_truth: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    crowds: Sequence[dict[str, Any]] = (),
    iou: float = IOU,
) -> list[int]:
    """For each detection the number of the label box it is matched to, IN_CROWD or UNMATCHED.

    A box without a score comes first. A crowd region without a label is of every class.
    """
    boxes = corners(detections)
    overlaps = np.hstack([intersection_over_union(boxes, corners(ground_truth)), share_inside(boxes, corners(crowds))])
    names = [label["label"] for label in ground_truth]
    for row, detection in enumerate(detections):
        other_class = [name != detection["label"] for name in names]
        overlaps[row, other_class + [crowd["label"] not in (None, detection["label"]) for crowd in crowds]] = -1.0
    is_crowd = np.arange(overlaps.shape[1]) >= len(names)
    scores = np.array([1.0 if d["score"] is None else d["score"] for d in detections], np.float64)
    order = np.argsort(-scores, kind="stable")
    matched = np.full(len(detections), -1, np.int64)
    matched[order] = match_boxes(overlaps[order], np.array([iou]), is_crowd[None], is_crowd)[0, 0]
    return [int(number) if number < len(names) else IN_CROWD for number in matched]
