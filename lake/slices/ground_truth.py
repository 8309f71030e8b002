"""Ground truth of a slice's images: the labels it was frozen with, or today's; and a model's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.errors import CouldNot
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, GroundTruth
from lake.sql import connections

if TYPE_CHECKING:
    from lake.storage.store import Lake

_COLUMNS = (
    *("event_id", "image_id", "task", "label", "boxes", "masks", "crowd_boxes", "crowd_masks", "incomplete"),
    "timestamp",
)
# Images per look-up: labels with many masks are large.
_CHUNK = 1_000


def current_events(lake: Lake, contents: pa.Table) -> pa.Table:
    """`slices.contents` with today's label events where the slice was made before labels were frozen."""
    if not contents["label_events"].null_count:
        return contents
    labels = connections.query(lake, "SELECT image_id, event_id FROM labels_current")
    events_of: dict[str, list[str]] = {}
    for image_id, event in zip(labels["image_id"].to_pylist(), labels["event_id"].to_pylist(), strict=True):
        events_of.setdefault(image_id, []).append(event)
    events = [
        sorted(events_of.get(image_id, [])) if frozen is None else frozen
        for image_id, frozen in zip(contents["image_id"].to_pylist(), contents["label_events"].to_pylist(), strict=True)
    ]
    return contents.set_column(1, "label_events", pa.array(events, pa.list_(pa.string())))


def of_images(lake: Lake, contents: pa.Table) -> dict[str, dict[str, GroundTruth]]:
    """By image_id and task, the ground truth of the label events in `contents` (image_id, label_events). In memory.

    Raises CouldNot if any of the events is gone: then nobody knows any more what these images were labelled as.
    """
    truths: dict[str, dict[str, GroundTruth]] = {}
    for start in range(0, contents.num_rows, _CHUNK):
        part = contents.slice(start, _CHUNK)
        events = {e for frozen in part["label_events"].to_pylist() for e in frozen or ()}
        if not events:
            continue
        rows = lake.look_up("labels", _COLUMNS, "image_id", part["image_id"].to_pylist()).to_pylist()
        lost = sorted(events - {row["event_id"] for row in rows})
        if lost:
            raise CouldNot(
                f"{len(lost)} of the labels that the slice was made with are gone, the first is event {lost[0]}; see"
                " lakeloop doctor, and lakeloop doctor --restore-from BACKUP"
            )
        for row in sorted(rows, key=lambda r: (r["timestamp"], r["event_id"])):
            if row["event_id"] in events and (truth := _truth(row)) is not None:
                truths.setdefault(row["image_id"], {})[truth.task] = truth
    return truths


def _truth(row: Mapping[str, Any]) -> GroundTruth | None:
    task, boxes, masks, incomplete = row["task"], row["boxes"], row["masks"], bool(row["incomplete"])
    if task == CLASSIFICATION:
        return GroundTruth(task, row["label"], incomplete=incomplete) if row["label"] else None
    crowd_boxes, crowd_masks = row["crowd_boxes"], row["crowd_masks"]
    if task == DETECTION:
        return GroundTruth(task, row["label"], boxes or [], None, crowd_boxes, crowd_masks, incomplete)
    return GroundTruth(SEGMENTATION, row["label"], boxes, masks or [], crowd_boxes, crowd_masks, incomplete)


def newest_predictions(lake: Lake, model: str, image_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By image_id a model's newest prediction, as a row of a prediction log: ingesting it restores the prediction."""
    import json

    from lake.sql.tables import plain
    from lake.storage.store import literal

    columns = [
        *("prediction_id", "image_id", "timestamp", "model", "model_version", "task", "label", "confidence"),
        *("scores", "boxes", "masks", "source", "latency_ms", "metadata", "ingested_at", *lake.promoted()),
    ]
    rows = lake.look_up("samples", columns, "image_id", image_ids, f"model = {literal(model)}").to_pylist()
    newest: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: (r["timestamp"] or r["ingested_at"], r["ingested_at"], r["prediction_id"])):
        newest[row["image_id"]] = row
    for image_id, row in newest.items():
        metadata = json.loads(row["metadata"]) if row["metadata"] else None
        # Whole numbers as they are: whoever reads an export keeps their digits.
        values = {
            k: v if isinstance(v, int) else plain(v)
            for k, v in row.items()
            if k not in ("image_id", "ingested_at", "metadata")
        }
        newest[image_id] = {k: v for k, v in (values | {"metadata": metadata}).items() if v is not None}
    return newest
