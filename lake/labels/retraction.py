"""Labels of earlier releases that say "nothing here" where a reader may have refused everything, and taking them back.

Earlier releases stored an image of which every annotation was refused as looked at and empty, and kept no note of it.
What can be known now: such a label is imported, has no source, is empty, and still counts. If the record of jobs has
the ingest that wrote it, it also says how much that ingest refused. Whether the image shows nothing is not known.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.formats import annotation
from lake.labels.imported_statements import ORIGIN, ImportedStatements, Statement, empty_statements
from lake.sql import connections
from lake.storage import schema, store

if TYPE_CHECKING:
    import datetime as dt

    from lake.storage.store import Lake

ANNOTATOR = "labels retract"


@dataclass(frozen=True)
class Ingest:
    """An ingest in the record of jobs. `path`: what it read; `rejected`: how much it refused; `until`: its end."""

    job: str
    path: str
    rejected: int
    since: dt.datetime
    until: dt.datetime


@dataclass(frozen=True)
class EmptyLabel:
    """A label that counts and says that its image shows nothing. `ingest`: what wrote it, None if no record has it."""

    image_id: str
    task: str
    ingest: Ingest | None


@dataclass
class Retraction:
    """`labels`: the empty labels chosen; `written`: the events that take them back, or give them again."""

    labels: list[EmptyLabel] = field(default_factory=list)
    written: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def empty_labels(lake: Lake) -> list[EmptyLabel]:
    """The empty labels that an earlier release imported and that still count, by image_id and task."""
    rows = _current(lake, "source IS NULL AND incomplete IS NOT TRUE").to_pylist()
    ingests = _ingests(lake) if rows else []
    labels = []
    for row in rows:
        image_id, task = row["image_id"], row["task"]
        # A program may send an empty label on purpose; the id of an earlier release's import comes from the content.
        if row["event_id"] in {annotation.event_id(image_id, empty) for empty in empty_statements(task)}:
            of_label = next((i for i in ingests if i.since <= row["timestamp"] <= i.until), None)
            labels.append(EmptyLabel(image_id, task, of_label))
    return labels


def retract(lake: Lake, *, all: bool = False, dry_run: bool = False) -> Retraction:
    """Takes back the empty labels of ingests that refused something; with `all`, also those of unknown ingests.

    Each gets a new event that is empty and incomplete, which says nothing; the older event stays. Labels that people
    gave since are not touched.
    """
    chosen = [label for label in empty_labels(lake) if (label.ingest.rejected > 0 if label.ingest is not None else all)]
    said = [(label.image_id, replace(annotation.nothing(label.task), incomplete=True)) for label in chosen]
    return Retraction(chosen, 0 if dry_run else _write(lake, said))


def undo(lake: Lake, *, dry_run: bool = False) -> Retraction:
    """Gives every label again that `retract` took back and that nobody changed since."""
    rows = _current(lake, f"annotator = {store.literal(ANNOTATOR)} AND incomplete").to_pylist()
    labels = [EmptyLabel(row["image_id"], row["task"], None) for row in rows]
    said = [(label.image_id, annotation.nothing(label.task)) for label in labels]
    return Retraction(labels, 0 if dry_run else _write(lake, said))


def _current(lake: Lake, condition: str) -> pa.Table:
    return connections.query(
        lake,
        f"""SELECT event_id, image_id, task, timestamp FROM labels_current
        WHERE origin = '{ORIGIN}' AND label IS NULL AND {condition}
            AND (task = 'detection' AND len(boxes) = 0 OR task = 'segmentation' AND len(masks) = 0)
            AND coalesce(len(crowd_boxes), 0) + coalesce(len(crowd_masks), 0) = 0
        ORDER BY image_id, task""",
    )


def _ingests(lake: Lake) -> list[Ingest]:
    """The finished ingests of the record of jobs, the latest first."""
    rows = connections.query(
        lake,
        """SELECT job, any_value(arguments) AS arguments, min(created_at) AS since, max(changed_at) AS until,
            arg_max(result, changed_at) AS result
        FROM jobs WHERE kind = 'ingest' GROUP BY job ORDER BY since DESC""",
    ).to_pylist()
    ingests = []
    for row in rows:
        arguments, result = json.loads(row["arguments"]), json.loads(row["result"] or "{}")
        ingests.append(
            Ingest(
                row["job"], str(arguments.get("path")), int(result.get("rejected_count", 0)), row["since"], row["until"]
            )
        )
    return ingests


def _write(lake: Lake, said: list[tuple[str, annotation.GroundTruth]]) -> int:
    imported = ImportedStatements(lake, store.now())
    statements = [Statement(image_id, truth, ANNOTATOR, None) for image_id, truth in said]
    rows = imported.rows(statements)
    table = pa.Table.from_pylist(rows + imported.rest(), schema=schema.LABELS.arrow())
    new = lake.insert("labels", table)
    lake.index("labels")
    return new
