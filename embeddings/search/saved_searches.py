"""Active searches kept in the lake: begun from examples, marked page by page, resumed by anybody, made into a slice.

What is ranked is `embeddings/search/active_search.py`'s; here images have ids, and every mark is a row of the table
marks before the next page is shown. A search looks at the images that had a vector when it was begun or resumed.
"""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embeddings.embedders import embedder as embedders
from embeddings.search.active_search import PAGE, ActiveSearch, Left
from embeddings.vectors import whitening
from lake import ids as identity
from lake.errors import BadInput
from lake.slices import cluster_nodes
from lake.sql import connections
from lake.sql import where as filters
from lake.storage import schema, store
from lake.storage.store import literal
from lake.storage.vectors import vector_batches

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Sequence

    from lake.storage.store import EmbedderRecord, Lake

# Stop is advised when the last page had none, the next is expected to show less than this, and few enough are left.
NEXT_PAGE_LEAST = 0.5
LEFT_SHARE = 0.1


@dataclass(frozen=True)
class Progress:
    """`looked`: images shown and marked; `found`: marked yes, examples and accepted clusters too.

    `left`: how many are estimated to be still there, `low` to `high`; None until a page has both a yes and a no.
    `advice` is a sentence for a person, `stop` its gist.
    """

    images: int
    looked: int
    found: int
    pages: int
    left: float | None
    low: int | None
    high: int | None
    stop: bool
    advice: str


@dataclass(frozen=True)
class Summary:
    """One saved search."""

    id: str
    name: str | None
    embedder: str
    found: int
    looked: int
    created_at: dt.datetime


@dataclass(frozen=True)
class _Mark:
    image_id: str
    mark: str
    page: int
    node: str | None


class Search:
    """One search, open: its images' points are in memory, d x 8 bytes each. Not for several threads at once."""

    def __init__(self, lake: Lake, row: dict[str, Any]) -> None:
        self._lake = lake
        self._row = row
        self.id: str = row["id"]
        self.name: str | None = row["name"]
        self.node: str | None = row["node"]
        self.where: str | None = row["where"]
        record = embedders.record_of(lake, row["embedder"])
        self._names, points = _points(lake, record, row)
        self._places = {name: place for place, name in enumerate(self._names)}
        missing = [i for i in row["examples"] if i not in self._places]
        if missing:
            raise BadInput(f"{_about(lake, missing[0], record)}, so nothing like it can be ranked")
        self._active = ActiveSearch(points)
        self._log: deque[_Mark] = deque()
        for _, group in groupby(_marks(lake, self.id), key=lambda mark: (mark.page, mark.node, mark.mark == "none")):
            self._take([*group])

    def page(self, size: int = PAGE) -> Sequence[str]:
        """image_ids to look at next, the likeliest first; the same until marks change. Empty when all are marked."""
        return [self._names[place] for place in self._active.page(size).tolist()]

    def images(self) -> Sequence[str]:
        """Every image the search looks at, sorted."""
        return tuple(self._names)

    def mark(self, yes: Sequence[str] = (), no: Sequence[str] = ()) -> None:
        """One page's marks, safe in the lake when this returns. Raises BadInput for an image not in the search."""
        both = set(yes) & set(no)
        if both:
            raise BadInput(f"{min(both)} is marked yes and no at once")
        page = self.pages + 1
        self._write([_Mark(i, "yes", page, None) for i in yes] + [_Mark(i, "no", page, None) for i in no])

    def accept(self, node: str) -> int:
        """Marks all of a cluster (TREE/PATH) yes that is not marked, without looking; returns how many."""
        return self._whole(node, "yes")

    def refuse(self, node: str) -> int:
        """Marks all of a cluster (TREE/PATH) no that is not marked, without looking; returns how many."""
        return self._whole(node, "no")

    def undo(self) -> bool:
        """Takes back what was marked last, a page or a whole cluster; false when there is nothing to take back."""
        current = [m for m in self._current().values() if m.page > 0 or m.node is not None]
        if not current:
            return False
        group = [m for m in current if (m.page, m.node) == (current[-1].page, current[-1].node)]
        self._write([_Mark(m.image_id, "none", m.page, m.node) for m in group])
        return True

    def found(self) -> Sequence[str]:
        """What is marked yes: the examples, then in the order they were marked."""
        return [m.image_id for m in self._current().values() if m.mark == "yes"]

    @property
    def pages(self) -> int:
        """How many pages were marked and not taken back."""
        return max((m.page for m in self._current().values()), default=0)

    def progress(self) -> Progress:
        """How far the search is, with an estimate of what is left. Some 10 ms."""
        current = self._current().values()
        found = sum(m.mark == "yes" for m in current)
        looked = sum(m.node is None and m.page > 0 for m in current)
        pages = max((m.page for m in current), default=0)
        left = self._active.left()
        open_ = int((self._active.marks == 0).sum())
        lately = sum(m.mark == "yes" and m.page == pages for m in current)
        stop, advice = _advice(left, found, pages, lately, open_)
        low, high = (left.low, min(left.high, open_)) if left else (None, None)
        return Progress(
            len(self._names), looked, found, pages, left.expected if left else None, low, high, stop, advice
        )

    def rename(self, name: str) -> None:
        """Calls the search by a name."""
        row = self._row | {"name": name.strip() or None}
        self._lake.update("searches", pa.Table.from_pylist([row], schema=schema.SEARCHES.arrow()))
        self._row, self.name = row, row["name"]

    def _whole(self, node: str, mark: str) -> int:
        current = self._current()
        fresh = [i for i in cluster_nodes.members(self._lake, [node]) if i in self._places and i not in current]
        self._write([_Mark(i, mark, 0, node) for i in fresh])
        return len(fresh)

    def _write(self, marks: Sequence[_Mark]) -> None:
        unknown = [m.image_id for m in marks if m.image_id not in self._places]
        if unknown:
            raise BadInput(f"the image {unknown[0]} is not among those this search looks at")
        _save(self._lake, self.id, marks)
        self._take(marks)

    def _take(self, marks: Sequence[_Mark]) -> None:
        self._log.extend(marks)
        for word, number in (("yes", 1), ("no", -1), ("none", 0)):
            places = [self._places[m.image_id] for m in marks if m.mark == word and m.image_id in self._places]
            if places:
                self._active.mark(places, number)

    def _current(self) -> dict[str, _Mark]:
        """The last word on each image, in the order of those words."""
        current: dict[str, _Mark] = {}
        for mark in self._log:
            current.pop(mark.image_id, None)
            if mark.mark != "none":
                current[mark.image_id] = mark
        return current


def start(
    lake: Lake,
    *,
    examples: Sequence[str],
    node: str | None = None,
    where: str | None = None,
    embedder: str | None = None,
    name: str | None = None,
    seed: int = 0,
) -> Search:
    """Begins a search from examples (image or prediction ids, all of the kind) in the lake, a filter or a node.

    Examples need not be inside the filter or node. Raises BadInput without examples, for unknown ids or nodes, and for
    examples without a vector.
    """
    if not examples:
        raise BadInput("a search needs at least one example of the kind")
    if node is not None and where is not None:
        raise BadInput("search in a node or in a filter, not both")
    record = embedders.record_of(lake, embedder)
    row = {
        "id": uuid.uuid4().hex[:8],
        "name": name,
        "examples": _images(lake, examples),
        "node": node,
        "where": where,
        "embedder": record.name,
        "seed": seed,
        "predictions_version": lake.version("predictions"),
        "created_at": store.now(),
    }
    search = Search(lake, row)  # raises before anything is written
    # Marks first: the row in searches is the commit.
    search._write([_Mark(i, "yes", 0, None) for i in row["examples"]])
    lake.insert("searches", pa.Table.from_pylist([row], schema=schema.SEARCHES.arrow()))
    return search


def resume(lake: Lake, search: str) -> Search:
    """A saved search as it was left, with what has come to the lake since. Raises BadInput when there is none."""
    found = lake.dataset("searches").to_table(filter=f"id = {literal(search)}").to_pylist()
    if not found:
        raise BadInput(f"no search {search!r}; `lakeloop isolate --list` names them")
    return Search(lake, found[0])


def list(lake: Lake) -> Sequence[Summary]:  # `searches.list` reads as what it is
    """Every search, the newest first."""
    rows = connections.query(
        lake,
        """
        SELECT s.id, s.name, s.embedder, s.created_at, count(*) FILTER (WHERE mark = 'yes') AS found,
               count(*) FILTER (WHERE m.node IS NULL AND page > 0) AS looked
        FROM searches s LEFT JOIN marks_current m ON m.search = s.id GROUP BY ALL ORDER BY s.created_at DESC, s.id""",
    )
    return [Summary(**row) for row in rows.to_pylist()]


def _advice(left: Left | None, found: int, pages: int, lately: int, open_: int) -> tuple[bool, str]:
    if not open_:
        return True, "Every image is marked."
    if left is None:
        if not pages:
            return False, "Mark the images of the same kind; the next page learns from it."
        return False, "No estimate yet: it needs pages with images of the kind and others."
    few = left.expected <= LEFT_SHARE * (found + left.expected)
    if left.next_page < NEXT_PAGE_LEAST and lately:
        return False, f"Few can be left, but the last page still had {lately:,}: look at one more."
    if left.next_page < NEXT_PAGE_LEAST and few:
        return True, f"You can stop: about {left.expected:,.0f} may be left, and the last page had none."
    if left.next_page < NEXT_PAGE_LEAST:
        pages_each = 1 / max(left.next_page, 1e-3)
        return False, f"About {left.expected:,.0f} may be left, hard to find: one in about {pages_each:,.0f} pages now."
    return False, f"About {left.expected:,.0f} are left; the next page should show about {left.next_page:,.0f}."


def _points(lake: Lake, record: EmbedderRecord, row: dict[str, Any]) -> tuple[Any, np.ndarray]:
    """image_ids, sorted, and their whitened points."""
    wanted: set[str] | None = None
    if row["node"] is not None:
        wanted = set(cluster_nodes.members(lake, [row["node"]]))
    elif row["where"] is not None:
        wanted = set(filters.images(lake, row["where"]))
    chosen = None if wanted is None else sorted(wanted | set(row["examples"]))
    count = lake.dataset("predictions").count_rows(f"{record.column} is not null") if chosen is None else len(chosen)
    share = whitening.FIT_SAMPLE / max(1, count)
    batches: Iterable[tuple[Any, np.ndarray]] = vector_batches(lake, record, chosen)
    if share >= 1:  # few enough to be held: the table is read once
        batches = [*batches]
    # An id is a hash: the first digits choose a sample, the same whoever asks.
    sampled = [vectors[[int(name[:8], 16) < share * 16**8 for name in names]] for names, vectors in batches]
    if not sampled:
        return [], np.zeros((0, 1), np.float32)
    fitted = whitening.fit(np.concatenate(sampled))
    names: Any = []
    points = []
    for some, vectors in batches if share >= 1 else vector_batches(lake, record, chosen):
        names += some
        points.append(fitted.transform(vectors))
    order = np.argsort(np.asarray(names))
    return [names[i] for i in order.tolist()], np.concatenate(points)[order]


def _images(lake: Lake, ids: Sequence[str]) -> Any:
    """The distinct images of image and prediction ids, in their order. Raises BadInput for an unknown id."""
    found: dict[str, None] = {}
    for given in ids:
        if identity.kind(given) == "image":
            found[given] = None
            continue
        answer = str(identity.as_uuid(given))
        rows = lake.look_up("predictions", ["image_id"], "prediction_id", [answer])
        if not rows.num_rows:
            raise BadInput(f"the lake has no prediction_id {given}")
        found[rows["image_id"][0].as_py()] = None
    return [*found]


def _about(lake: Lake, image_id: str, record: EmbedderRecord) -> str:
    if not lake.known("predictions", "image_id", [image_id]):
        return f"the lake has no image_id {image_id}"
    return f"the image {image_id} has no {record.name} vector (lakeloop embed --embedder {record.name})"


def _marks(lake: Lake, search: str) -> Any:
    rows = lake.dataset("marks").to_table(
        columns=["image_id", "mark", "page", "node", "timestamp", "event_id"], filter=f"search = {literal(search)}"
    )
    ordered = rows.sort_by([("timestamp", "ascending"), ("event_id", "ascending")]).to_pylist()
    return [_Mark(row["image_id"], row["mark"], row["page"], row["node"]) for row in ordered]


def _save(lake: Lake, search: str, marks: Sequence[_Mark]) -> None:
    if not marks:
        return
    moment = store.now()
    # Of equal moments the event_id orders.
    events = sorted(str(uuid.uuid4()) for _ in marks)
    rows = [
        {**vars(m), "event_id": e, "search": search, "timestamp": moment} for m, e in zip(marks, events, strict=True)
    ]
    lake.insert("marks", pa.Table.from_pylist(rows, schema=schema.MARKS.arrow()))
