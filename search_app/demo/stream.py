"""The demo's production as a stream of events, and how what is not watched enters the lake.

Events are those of a live service and go the way of one: into the spool, and from there to the lake. Here in one
process; `search_app/demo/replay.py` sends them to a running server instead. Ids are made from the cells' names, so
whatever is said again adds nothing, and both ways end in the same lake.
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
# The newest answers, which arrive while somebody watches, and after how many of them the customer calls.
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
class Saying:
    """One event, as the API takes it, about the photograph at `path`. `truth` is what a person who checked it said."""

    kind: Literal["prediction", "feedback"]
    path: str
    image_id: str
    event: dict[str, Any]
    truth: str | None = None

    @property
    def id(self) -> str:
        return str(self.event["prediction_id"])

    def data(self) -> bytes:
        """The photograph's file."""
        return (folder() / self.path).read_bytes()


def production(story: Story, classes: Sequence[str], chances: np.ndarray) -> list[Saying]:
    """What production said, in the order of its time, and the customer's call. `chances`: one row a cell.

    A person checks one answer in three, drawn at random with a seed.
    """
    checked = np.random.default_rng(SEED + 1).random(len(story.production)) < CHECKED_SHARE
    said = []
    for (cell, moment), row, drawn in zip(story.production, chances.tolist(), checked.tolist(), strict=True):
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
        said.append(Saying("prediction", cell.path, name, event, cell.truth if drawn else None))
    about = _surest_mistake(story, said)
    call = {"prediction_id": about.id, "event_id": _id(f"call {about.path}"), **CALL}
    when = max(said.index(about) + 1, len(said) - ARRIVING + CALL_AFTER)
    return [*said[:when], Saying("feedback", about.path, about.image_id, call), *said[when:]]


def bring_in(lake: Lake, said: Sequence[Saying]) -> None:
    """Puts the events into the lake's spool and drains it. Raises CouldNot when another process drains it."""
    from lake.spool.drain import drain
    from lake.spool.spool import Spool, beside

    place = beside(lake.uri)
    assert place is not None, "the demo lake is a folder"
    promoted = lake.promoted()
    spool = Spool(place)
    try:
        for start in range(0, len(said), _AT_ONCE):
            spool.put([_event(one, promoted) for one in said[start : start + _AT_ONCE]])
        if drain(lake, spool) is None:
            raise CouldNot(f"a server is at work on {lake.uri}; stop it, or look at the demo there")
    finally:
        spool.close()


def label(lake: Lake, said: Sequence[Saying]) -> None:
    """Has the person who checks look at these answers, a day after each."""
    import pyarrow as pa

    from lake.storage import schema

    rows = [
        {
            "event_id": ids.label_event_id(one.image_id, one.truth, "human"),
            "image_id": one.image_id,
            "timestamp": dt.datetime.fromisoformat(one.event["timestamp"]) + dt.timedelta(days=1),
            "task": "classification",
            "label": one.truth,
            "origin": "human",
            "annotator": "random check",
        }
        for one in said
        if one.truth is not None
    ]
    distinct = {row["event_id"]: row for row in rows}
    lake.insert("labels", pa.Table.from_pylist(list(distinct.values()), schema=schema.LABELS.arrow()))


def group(lake: Lake) -> str:
    """Clusters what production saw; the tree's name."""
    from embeddings.clusters.drilldown import cluster

    return cluster(lake, where="model IS NOT NULL", method="kmeans", seed=SEED).tree


def keep(place: Path, said: Sequence[Saying]) -> None:
    """Notes beside the lake what is still to arrive."""
    (place / _FILE).write_text("".join(json.dumps(asdict(one)) + "\n" for one in said))


def kept(place: Path) -> list[Saying]:
    """What is still to arrive in the lake at `place`."""
    file = place / _FILE
    return [Saying(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []


def arrived(lake: Lake, place: Path) -> None:
    """The end of the stream: all of it is there and has its vectors. What is left is labelled and clustered."""
    label(lake, kept(place))
    group(lake)
    (place / _FILE).unlink()


def _surest_mistake(story: Story, said: Sequence[Saying]) -> Saying:
    """The sound cell of the new kind that was thrown away with the greatest confidence: somebody calls."""
    wrong = [
        one for (cell, _), one in zip(story.production, said, strict=True)
        if cell.kind == "polycrystalline" and cell.truth == "functional" and one.event["label"] == "defect"
    ]  # fmt: skip
    return max(wrong, key=lambda one: float(one.event["confidence"]))


def _event(one: Saying, promoted: dict[str, Any]) -> Event:
    from lake.spool import events

    if one.kind == "feedback":
        return events.feedback(one.event, {one.id: one.image_id}, None)
    return events.prediction(one.event, promoted, one.image_id, one.data(), None)


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"lakeloop:demo:{name}"))
