"""Which statements of an import are new, so that the latest one counts and an unchanged source adds nothing.

A statement is what one source says of one image for one task. It is known if it equals the source's last statement, or
the last imported statement of any source: the folder may have moved. Otherwise it is new, also if the source said the
same at some time before: cat, dog, cat ends as cat. What people said since does not matter here; a known statement is
no event, so it never overrides them.

Contents are compared by ids alone: an event's id is derived from the content, the source, and the id of the source's
event before it. So a second run after a kill, and two runs at once, add a statement once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from lake import ids
from lake.formats import annotation
from lake.formats.annotation import DETECTION, SEGMENTATION, GroundTruth

if TYPE_CHECKING:
    from lake.storage.store import Lake

ORIGIN = "import"
# A source may say several things of an image, because it has the image twice. Nothing tells at first whether it returns
# to an older statement or says all of them again: such statements wait for the end of the ingest, this many at most.
WAITING = 20_000
_TICK = dt.timedelta(microseconds=1)


class Statement(NamedTuple):
    """What a source says of an image. `source`: the absolute path of the document, or of the class folders' root."""

    image_id: str
    truth: GroundTruth
    annotator: str
    source: str | None


class _Event(NamedTuple):
    """A stored label event; `before`: the id of the event before it of the same source, among the imported ones."""

    event_id: str
    timestamp: dt.datetime
    source: str | None
    imported: bool
    before: str | None

    def says(self, image_id: str, truth: GroundTruth) -> bool:
        if not self.imported:
            return False
        own = _event_id(image_id, truth, self.source, self.before)
        # Events without a source are older than sources: their id comes from the content alone.
        return self.event_id in (own, annotation.event_id(image_id, truth) if self.source is None else own)


class ImportedStatements:
    """The statements of one ingest that started at `moment`, which is the time of its label events."""

    def __init__(self, lake: Lake, moment: dt.datetime) -> None:
        self._lake = lake
        self._moment = moment
        self._waiting: dict[tuple[str, str, str | None], Statement] = {}

    def rows(self, statements: Sequence[Statement], new_images: Collection[str] = ()) -> list[dict[str, Any]]:
        """The rows of `labels` for the new ones among the statements, in order; insert them before the next call.

        `new_images` have no label in the lake. Statements that wait come in a later call, or with `rest`.
        """
        waiting = self._waiting if len(self._waiting) > WAITING else {}
        images = {s.image_id for s in statements} - {*new_images} | {image_id for image_id, _, _ in waiting}
        history = _History(self._lake, images)
        rows = self._settled(history) if waiting else []
        for statement in statements:
            key = (statement.image_id, statement.truth.task, statement.source)
            last = history.is_known(statement)
            if not last and history.was_said(statement):
                self._waiting[key] = statement
                continue
            self._waiting.pop(key, None)
            if not last:
                rows.append(history.add(statement, self._moment))
        return rows

    def rest(self) -> list[dict[str, Any]]:
        """The rows for the statements that waited, at the end of the ingest."""
        return self._settled(_History(self._lake, {image_id for image_id, _, _ in self._waiting}))

    def _settled(self, history: _History) -> list[dict[str, Any]]:
        waiting, self._waiting = [*self._waiting.values()], {}
        return [history.add(s, self._moment) for s in waiting if not history.is_known(s)]


class _History:
    """The label events of some images by image and task, oldest first."""

    def __init__(self, lake: Lake, image_ids: Collection[str]) -> None:
        self._events: dict[tuple[str, str], list[_Event]] = {}
        if not image_ids:
            return
        columns = ["event_id", "image_id", "task", "timestamp", "origin", "source"]
        rows = lake.look_up("labels", columns, "image_id", sorted(image_ids)).to_pylist()
        for row in sorted(rows, key=lambda r: (r["timestamp"], r["event_id"])):
            imported = row["origin"] == ORIGIN
            self._append((row["image_id"], row["task"]), row["event_id"], row["timestamp"], row["source"], imported)

    def is_known(self, statement: Statement) -> bool:
        """Whether the statement adds nothing to the last one of its source, or to the last imported one."""
        if statement.truth.incomplete and not statement.truth.says_something():
            return not self._takes_back(statement)
        if (statement.image_id, statement.truth.task) not in self._events:
            return False
        last_ones = (self._last(statement, statement.source), next(self._imported(statement), None))
        return any(event is not None and event.says(statement.image_id, statement.truth) for event in last_ones)

    def was_said(self, statement: Statement) -> bool:
        """Whether an import said the same at any time."""
        return any(event.says(statement.image_id, statement.truth) for event in self._imported(statement))

    def add(self, statement: Statement, moment: dt.datetime) -> dict[str, Any]:
        """The statement as a new row of `labels`, later than every imported one so far."""
        last = next(self._imported(statement), None)
        timestamp = moment if last is None else max(moment, last.timestamp + _TICK)
        own = self._last(statement, statement.source)
        truth = statement.truth
        before = own.event_id if own else None
        event_id = _event_id(statement.image_id, truth, statement.source, before)
        self._append((statement.image_id, truth.task), event_id, timestamp, statement.source, True)
        return {
            "event_id": event_id,
            "image_id": statement.image_id,
            "timestamp": timestamp,
            "task": truth.task,
            "label": truth.label,
            "boxes": truth.boxes,
            "masks": truth.masks,
            "origin": ORIGIN,
            "annotator": statement.annotator,
            "incomplete": truth.incomplete,
            "crowd_boxes": truth.crowd_boxes,
            "crowd_masks": truth.crowd_masks,
            "source": statement.source,
        }

    def _takes_back(self, statement: Statement) -> bool:
        """Whether the current label says that nothing is there, by this source or by an import without a source.

        Readers of earlier releases said so where they had refused everything.
        """
        events = self._events.get((statement.image_id, statement.truth.task))
        if not events or events[-1].source not in (None, statement.source):
            return False
        return any(events[-1].says(statement.image_id, empty) for empty in empty_statements(statement.truth.task))

    def _last(self, statement: Statement, source: str | None) -> _Event | None:
        return next((event for event in self._imported(statement) if event.source == source), None)

    def _imported(self, statement: Statement) -> Iterator[_Event]:
        """The imported events, the latest first."""
        events = self._events.get((statement.image_id, statement.truth.task), ())
        return (event for event in reversed(events) if event.imported)

    def _append(
        self, key: tuple[str, str], event_id: str, timestamp: dt.datetime, source: str | None, imported: bool
    ) -> None:
        events = self._events.setdefault(key, [])
        before = (event.event_id for event in reversed(events) if event.imported and event.source == source)
        events.append(_Event(event_id, timestamp, source, imported, next(before, None)))


def empty_statements(task: str) -> list[GroundTruth]:
    """The forms of the statement that an image was looked at and shows nothing."""
    empty = annotation.nothing(task)
    forms = {DETECTION: [empty], SEGMENTATION: [empty, replace(empty, boxes=[])]}
    return forms.get(task, [])


def _event_id(image_id: str, truth: GroundTruth, source: str | None, before: str | None) -> str:
    return ids.imported_label_id(image_id, annotation.content(truth), source, before)
