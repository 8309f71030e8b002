"""Labels that people gave in a labelling tool, taken into the lake: each finished annotation once, as a person's word.

An annotation that was changed since and exported again is a new statement, and the later one counts. Nothing here
draws or shows; what the tool's files look like is `lake/formats/label_studio.py`'s.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import ids
from lake.errors import BadInput
from lake.formats import label_studio
from lake.formats.label_studio import FinishedAnnotation, RejectedAnnotation
from lake.storage import schema, store

if TYPE_CHECKING:
    from lake.formats.annotation import GroundTruth
    from lake.storage.store import Lake


@dataclass
class LabelImportReport:
    """`labels_new`: statements taken; `labels_known`: those the lake has from before; `rejected`: tasks and
    annotations that were not taken, with their place in the file and the reason.
    """

    labels_new: int = 0
    labels_known: int = 0
    images: int = 0
    rejected: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def import_annotations(lake: Lake, path: str | Path) -> LabelImportReport:
    """Takes the finished annotations of a Label Studio export (JSON) into the table labels, origin `human`.

    The same file again adds nothing. What cannot be taken is reported and changes nothing for the others. Raises
    BadInput when the file is no such export, or when nothing in it can be taken.
    """
    report = LabelImportReport()
    found: list[FinishedAnnotation] = []
    for one in label_studio.read(Path(path)):
        if isinstance(one, RejectedAnnotation):
            _reject(report, one.source, one.reason)
        else:
            found.append(one)
    sizes = _sizes(lake, sorted({one.image_id for one in found}))
    rows: dict[str, dict[str, Any]] = {}
    taken = 0
    for one in found:
        if one.image_id not in sizes:
            _reject(report, one.source, f"the lake has no image {one.image_id}")
            continue
        try:
            truths = one.ground_truths(*sizes[one.image_id])
        except BadInput as error:
            _reject(report, one.source, str(error))
            continue
        taken += 1
        for row in (_row(one, truth) for truth in truths):
            rows[row["event_id"]] = row
    if not taken:
        first = f": {report.rejected[0]['source']}: {report.rejected[0]['reason']}" if report.rejected else ""
        raise BadInput(f"{path} has no finished annotation that can be taken{first}")
    report.images = len({row["image_id"] for row in rows.values()})
    report.labels_new = lake.insert("labels", pa.Table.from_pylist([*rows.values()], schema=schema.LABELS.arrow()))
    report.labels_known = len(rows) - report.labels_new
    lake.index("labels")
    return report


def _sizes(lake: Lake, names: list[str]) -> dict[str, tuple[int, int]]:
    """Width and height of the images that the lake has, erased ones left out."""
    rows = lake.look_up("images", ["image_id", "width", "height"], "image_id", names).to_pylist()
    gone = lake.erased(names)
    return {row["image_id"]: (row["width"], row["height"]) for row in rows if row["image_id"] not in gone}


def _row(one: FinishedAnnotation, truth: GroundTruth) -> dict[str, Any]:
    # The time is part of the id: A, then B, then A again are three statements, and the last one counts.
    said = json.dumps([truth.task, truth.label, truth.boxes, truth.masks, one.id, str(one.at)], sort_keys=True)
    return {
        "event_id": ids.label_event_id(one.image_id, said, "label-studio"),
        "image_id": one.image_id,
        "timestamp": one.at or store.now(),
        "task": truth.task,
        "label": truth.label,
        "boxes": truth.boxes,
        "masks": truth.masks,
        "origin": "human",
        "annotator": one.annotator,
    }


def _reject(report: LabelImportReport, place: str, reason: str) -> None:
    report.rejected.append({"source": place, "reason": reason})
