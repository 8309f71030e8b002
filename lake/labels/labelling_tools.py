"""Imports labels from a labelling tool: each finished annotation once, with origin `human`.

An annotation that was changed and exported again is a new label event; the later one counts. The tool's file format is
in `lake/formats/label_studio/reader.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import ids
from lake.errors import BadInput
from lake.formats.label_studio import reader as label_studio
from lake.formats.label_studio.reader import FinishedAnnotation, RejectedAnnotation
from lake.storage import schema, store

if TYPE_CHECKING:
    from lake.formats.annotation import GroundTruth
    from lake.storage.store import Lake


@dataclass
class LabelImportReport:
    """`labels_new`: label events that were added; `labels_known`: those the lake had already; `images`: how many images
    they are for; `rejected`: tasks, annotations and results that were not imported, with their position and the reason;
    `converted`: how often something was taken in another form or left aside, by what was done; `incomplete`: how many
    annotations had a part refused, by task.
    """

    labels_new: int = 0
    labels_known: int = 0
    images: int = 0
    rejected: list[dict[str, str]] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"converted": dict(self.converted), "incomplete": dict(self.incomplete)}


def import_annotations(lake: Lake, path: str | Path) -> LabelImportReport:
    """Imports the finished annotations of a Label Studio export (JSON) into the table labels, origin `human`.

    The same file again adds nothing. Annotations that cannot be imported are reported and do not affect the others.
    Raises BadInput if the file is not such an export, or if no annotation can be imported.
    """
    report = LabelImportReport()
    finished: list[FinishedAnnotation] = []
    for annotation in label_studio.read(Path(path)):
        if isinstance(annotation, RejectedAnnotation):
            _reject(report, annotation.source, annotation.reason)
        else:
            finished.append(annotation)
    sizes = _sizes(lake, sorted({annotation.image_id for annotation in finished}))
    rows: dict[str, dict[str, Any]] = {}
    accepted = 0
    for annotation in finished:
        if annotation.image_id not in sizes:
            _reject(report, annotation.source, f"the lake has no image {annotation.image_id}")
            continue
        try:
            said = annotation.annotations(*sizes[annotation.image_id])
        except BadInput as error:
            _reject(report, annotation.source, str(error))
            continue
        for source, reason in said.rejected:
            _reject(report, source, reason)
        report.converted.update(sentence for _, sentence in said.converted)
        report.incomplete.update(said.incomplete)
        truths = [truth for truth in said.statements() if truth.says_something() or not truth.incomplete]
        accepted += bool(truths)
        for row in (_row(annotation, truth) for truth in truths):
            rows[row["event_id"]] = row
    if not accepted:
        first = f": {report.rejected[0]['source']}: {report.rejected[0]['reason']}" if report.rejected else ""
        raise BadInput(f"{path} has no finished annotation that can be imported{first}")
    report.images = len({row["image_id"] for row in rows.values()})
    report.labels_new = lake.insert("labels", pa.Table.from_pylist([*rows.values()], schema=schema.LABELS.arrow()))
    report.labels_known = len(rows) - report.labels_new
    lake.index("labels")
    return report


def _sizes(lake: Lake, names: list[str]) -> dict[str, tuple[int, int]]:
    """Width and height of those images that the lake has, without erased ones."""
    rows = lake.look_up("images", ["image_id", "width", "height"], "image_id", names).to_pylist()
    erased = lake.erased(names)
    return {row["image_id"]: (row["width"], row["height"]) for row in rows if row["image_id"] not in erased}


def _row(annotation: FinishedAnnotation, truth: GroundTruth) -> dict[str, Any]:
    # The time is part of the id: A, then B, then A again are three label events, and the last one counts.
    comment = annotation.comment()
    parts: list[Any] = [truth.task, truth.label, truth.boxes, truth.masks, annotation.id, str(annotation.at)]
    if comment is not None or truth.incomplete:  # without them the id is as it always was
        parts += [comment, truth.incomplete]
    content = json.dumps(parts, sort_keys=True)
    return {
        "event_id": ids.label_event_id(annotation.image_id, content, "label-studio"),
        "image_id": annotation.image_id,
        "timestamp": annotation.at or store.now(),
        "task": truth.task,
        "label": truth.label,
        "boxes": truth.boxes,
        "masks": truth.masks,
        "origin": "human",
        "annotator": annotation.annotator,
        "incomplete": truth.incomplete,
        "comment": comment,
    }


def _reject(report: LabelImportReport, source: str, reason: str) -> None:
    report.rejected.append({"source": source, "reason": reason})
