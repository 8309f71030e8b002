"""The demo's production as a stream of events, and how the events enter the lake without a server.

The events are those of a live service and take the same way: into the spool, and from there into the lake. This module
does it in one process; `search_app/demo/replay.py` sends the events to a running server. The ids come from the names of
the cells, so repeated events add nothing, and both ways end in the same lake.
"""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lake import ids
from lake.errors import CouldNot
from search_app.demo.cells import SEED, Story, folder

if TYPE_CHECKING:
    from lake.spool.events import Event
    from lake.storage.store import Lake

MODEL, VERSION = "cell-inspector", "1"
CHECKED_SHARE = 1 / 3
# The number of newest predictions that arrive live, and after how many of them the customer calls.
ARRIVING = 60
CALL_AFTER = 12
CALL = {
    "verdict": "incorrect",
    "comment": "Our laboratory measured full output. Why was this cell thrown away?",
    "ticket": "C-2041",
}
_FILE = "arriving.jsonl"
_AT_ONCE = 256


@dataclass(frozen=True)
class DemoEvent:
    """An event as the API takes it, about the photograph at `path`. `truth` is the label by a person who checked it."""

    kind: Literal["prediction", "feedback"]
    path: str
    image_id: str
    event: dict[str, Any]
    truth: str | None = None

    @property
    def id(self) -> str:
        return str(self.event["prediction_id"])

    def data(self) -> bytes:
        """The bytes of the photograph."""
        return (folder() / self.path).read_bytes()


def production(story: Story, classes: Sequence[str], probabilities: np.ndarray) -> list[DemoEvent]:
    """The predictions of production in the order of time, and the customer's call.

    `probabilities` has a row for each cell and a column for each class. A person checks one prediction in three, drawn
    at random with a seed.
    """
    checked = np.random.default_rng(SEED + 1).random(len(story.production)) < CHECKED_SHARE
    events = []
    for (cell, moment), row, drawn in zip(story.production, probabilities.tolist(), checked.tolist(), strict=True):
        best = int(np.argmax(row))
        event = {
            "prediction_id": _id(cell.name),
            "source": cell.name,
            "timestamp": moment.isoformat(),
            "model": MODEL,
            "model_version": VERSION,
            "label": classes[best],
            "confidence": row[best],
            "scores": dict(zip(classes, row, strict=True)),
            "module_type": cell.kind,
        }
        name = ids.image_id((folder() / cell.path).read_bytes())
        events.append(DemoEvent("prediction", cell.path, name, event, cell.truth if drawn else None))
    mistake = _most_confident_mistake(story, events)
    call = {"prediction_id": mistake.id, "event_id": _id(f"call {mistake.path}"), **CALL}
    position = max(events.index(mistake) + 1, len(events) - ARRIVING + CALL_AFTER)
    feedback = DemoEvent("feedback", mistake.path, mistake.image_id, call)
    return [*events[:position], feedback, *events[position:]]


def ingest(lake: Lake, events: Sequence[DemoEvent]) -> None:
    """Puts the events into the spool of the lake and drains it. Raises CouldNot if another process drains it."""
    from lake.spool.drain import drain
    from lake.spool.spool import Spool, beside

    spool_folder = beside(lake.uri)
    assert spool_folder is not None, "the demo lake is a folder"
    promoted = lake.promoted()
    spool = Spool(spool_folder)
    try:
        for start in range(0, len(events), _AT_ONCE):
            spool.put([_spool_event(event, promoted) for event in events[start : start + _AT_ONCE]])
        if drain(lake, spool) is None:
            raise CouldNot(f"a server uses {lake.uri}; stop it, or open the demo in it")
    finally:
        spool.close()


def label(lake: Lake, events: Sequence[DemoEvent]) -> None:
    """Stores the labels of the person who checks, a day after each prediction."""
    import pyarrow as pa

    from lake.storage import schema

    rows = [
        {
            "event_id": ids.label_event_id(event.image_id, event.truth, "human"),
            "image_id": event.image_id,
            "timestamp": dt.datetime.fromisoformat(event.event["timestamp"]) + dt.timedelta(days=1),
            "task": "classification",
            "label": event.truth,
            "origin": "human",
            "annotator": "random check",
        }
        for event in events
        if event.truth is not None
    ]
    distinct = {row["event_id"]: row for row in rows}
    lake.insert("labels", pa.Table.from_pylist(list(distinct.values()), schema=schema.LABELS.arrow()))


def cluster_production(lake: Lake) -> str:
    """Clusters the images of production. Returns the name of the tree."""
    from embeddings.clusters.drilldown import cluster

    return cluster(lake, where="model IS NOT NULL", method="kmeans", seed=SEED).tree


def save_pending(folder: Path, events: Sequence[DemoEvent]) -> None:
    """Saves the events that arrive later in the folder of the lake."""
    (folder / _FILE).write_text("".join(json.dumps(asdict(event)) + "\n" for event in events))


def pending(folder: Path) -> list[DemoEvent]:
    """The events that have not arrived yet in the lake at `folder`."""
    file = folder / _FILE
    return [DemoEvent(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []


def finish(lake: Lake, folder: Path) -> None:
    """Labels and clusters the last events, after all of them have arrived and have vectors."""
    label(lake, pending(folder))
    cluster_production(lake)
    (folder / _FILE).unlink()


def _most_confident_mistake(story: Story, events: Sequence[DemoEvent]) -> DemoEvent:
    """The functional cell of the new kind that was called a defect with the most confidence."""
    mistakes = [
        event for (cell, _), event in zip(story.production, events, strict=True)
        if cell.kind == "polycrystalline" and cell.truth == "functional" and event.event["label"] == "defect"
    ]  # fmt: skip
    return max(mistakes, key=lambda event: float(event.event["confidence"]))


def _spool_event(event: DemoEvent, promoted: dict[str, Any]) -> Event:
    from lake.spool import events

    if event.kind == "feedback":
        return events.feedback(event.event, {event.id: event.image_id}, None)
    return events.prediction(event.event, promoted, event.image_id, event.data(), None)


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"lakeloop:demo:{name}"))
