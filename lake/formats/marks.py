"""What a label says beside its instances, in rows and elsewhere: that it is incomplete, and its crowd regions.

A row of `lake/formats/metadata.py` has `incomplete`, a list of tasks, `crowds` in the form of `objects`, and
`crowd_segments` in the form of `segments`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.annotation import DETECTION, SEGMENTATION, Annotations, GroundTruth
from lake.formats.export_files import ExportPart

COLUMNS = ("incomplete", "crowds", "crowd_segments")
INCOMPLETE, CROWDS = "an incomplete label", "a crowd region"


def of_row(truths: Mapping[str, GroundTruth]) -> dict[str, Any]:
    """The columns that these labels need, without the others."""
    row: dict[str, Any] = {}
    if incomplete := [task for task, truth in truths.items() if truth.incomplete]:
        row["incomplete"] = incomplete
    for column, task in (("crowds", DETECTION), ("crowd_segments", SEGMENTATION)):
        regions = truths[task].crowds() if task in truths else []
        if not regions:
            continue
        row[column] = {
            "bbox": [[box["x"], box["y"], box["width"], box["height"]] for box, _ in regions],
            "category": [(mask or box)["label"] for box, mask in regions],
        }
        if drawn := [mask for _, mask in regions if mask is not None]:
            row[column] |= {"size": [[m["height"], m["width"]] for m in drawn], "counts": [m["counts"] for m in drawn]}
    return row


def read(
    row: Mapping[str, Any],
    annotations: Annotations,
    source: str,
    regions_of: Callable[[str, Any], GroundTruth | None],
) -> None:
    """Adds a row's marks to the annotations. `regions_of` reads a column in the form of a task's instances, or raises
    BadInput; a task whose crowd regions are refused is incomplete.
    """
    incomplete = row.get("incomplete") or ()
    annotations.incomplete |= {task for task in annotation.TASKS if task in incomplete}
    for column, task in (("crowds", DETECTION), ("crowd_segments", SEGMENTATION)):
        value = row.get(column)
        boxes_only = isinstance(value, Mapping) and value.get("counts") is None
        try:
            regions = regions_of(DETECTION if boxes_only else task, value)
        except BadInput as error:
            annotations.rejected.append((f"{source}: {column}", str(error)))
            annotations.incomplete.add(task)
            continue
        if regions is None:
            continue
        regions = annotation.without_redundant_boxes(regions)
        annotations.ground_truths = [
            replace(truth, crowd_boxes=regions.boxes, crowd_masks=regions.masks) if truth.task == task else truth
            for truth in annotations.ground_truths
        ]


def without(part: ExportPart, truths: Mapping[str, GroundTruth], *, crowds: bool = True) -> dict[str, GroundTruth]:
    """The labels that a format without a place for marks can say: complete ones, without crowd regions if `crowds`.

    Counts what is left out.
    """
    complete = {task: truth for task, truth in truths.items() if not truth.incomplete}
    part.leave_out(INCOMPLETE, len(truths) - len(complete))
    if not crowds:
        return complete
    part.leave_out(CROWDS, sum(len(truth.crowds()) for truth in complete.values()))
    return {task: replace(truth, crowd_boxes=None, crowd_masks=None) for task, truth in complete.items()}
