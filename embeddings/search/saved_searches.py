"""Active searches saved in the lake: started from examples, marked page by page, resumed by anyone.

`embeddings/search/active_search.py` ranks rows; here images have ids, and every mark is a row of the table `marks`
before the next page is shown. A search covers the images that have a vector when it is started or resumed.
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
from embeddings.search.active_search import PAGE, ActiveSearch, RemainingEstimate
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

# The advice is to stop if the last page had none, the next page should show fewer than this, and this share remains.
MIN_NEXT_PAGE = 0.5
MAX_LEFT_SHARE = 0.1


@dataclass(frozen=True)
class SearchProgress:
    """`images`: searched; `looked`: shown and marked; `found`: marked yes, with examples and accepted clusters.

    `left`: estimate of how many of the kind remain, between `low` and `high`; None until a yes and a no are marked.
    `stop`: whether you can stop; `advice` says it in a sentence.
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
class SearchSummary:
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


class SavedSearch:
    """An open search; its images' points are in memory, d x 8 bytes each. Use it in one thread at a time."""

    def __init__(self, lake: Lake, row: dict[str, Any]) -> None:
        self._lake = lake
        self._row = row
        self.id: str = row["id"]
        self.name: str | None = row["name"]
        self.node: str | None = row["node"]
        self.where: str | None = row["where"]
        record = embedders.record_of(lake, row["embedder"])
        self._names, points = _points(lake, record, row)
        self._rows = {name: row_number for row_number, name in enumerate(self._names)}
        missing = [i for i in row["examples"] if i not in self._rows]
        if missing:
            raise BadInput(f"{_why_missing(lake, missing[0], record)}, so images cannot be ranked by it")
        self._active = ActiveSearch(points)
        self._marks: deque[_Mark] = deque()
        for _, group in groupby(_marks(lake, self.id), key=lambda mark: (mark.page, mark.node, mark.mark == "none")):
            self._take([*group])

    def page(self, size: int = PAGE) -> Sequence[str]:
        """The next image_ids to mark, the likeliest first; the same until marks change. Empty if all are marked."""
        return [self._names[row] for row in self._active.page(size).tolist()]

    def images(self) -> Sequence[str]:
        """Every image of the search, sorted."""
        return tuple(self._names)

    def mark(self, yes: Sequence[str] = (), no: Sequence[str] = ()) -> None:
        """Saves a page's marks in the lake. Raises BadInput for an image that is not in the search."""
        contradictory = set(yes) & set(no)
        if contradictory:
            raise BadInput(f"{min(contradictory)} is marked both yes and no")
        page = self.pages + 1
        self._write([_Mark(i, "yes", page, None) for i in yes] + [_Mark(i, "no", page, None) for i in no])

    def accept(self, node: str) -> int:
        """Marks all unmarked images of a cluster (TREE/PATH) yes; returns how many."""
        return self._whole(node, "yes")

    def refuse(self, node: str) -> int:
        """Marks all unmarked images of a cluster (TREE/PATH) no; returns how many."""
        return self._whole(node, "no")

    def undo(self) -> bool:
        """Removes the last marks, of a page or a whole cluster; False if there are none."""
        current = [mark for mark in self._current().values() if mark.page > 0 or mark.node is not None]
        if not current:
            return False
        group = [mark for mark in current if (mark.page, mark.node) == (current[-1].page, current[-1].node)]
        self._write([_Mark(mark.image_id, "none", mark.page, mark.node) for mark in group])
        return True

    def positives(self) -> Sequence[str]:
        """image_ids marked yes: the examples, then in the order of their marks."""
        return [m.image_id for m in self._current().values() if m.mark == "yes"]

    @property
    def pages(self) -> int:
        """How many pages are marked."""
        return max((m.page for m in self._current().values()), default=0)

    @property
    def events(self) -> int:
        """How many rows of `marks` it knows."""
        return len(self._marks)

    def progress(self) -> SearchProgress:
        """Counts, an estimate of how many remain, and advice. Takes about 10 ms."""
        current = self._current().values()
        found = sum(m.mark == "yes" for m in current)
        looked = sum(m.node is None and m.page > 0 for m in current)
        pages = max((m.page for m in current), default=0)
        left = self._active.remaining()
        unmarked = int((self._active.marks == 0).sum())
        last_page = sum(m.mark == "yes" and m.page == pages for m in current)
        stop, advice = _advice(left, found, pages, last_page, unmarked)
        low, high = (left.low, min(left.high, unmarked)) if left else (None, None)
        return SearchProgress(
            len(self._names), looked, found, pages, left.expected if left else None, low, high, stop, advice
        )

    def rename(self, name: str) -> None:
        """Names the search; an empty name removes its name."""
        row = self._row | {"name": name.strip() or None}
        self._lake.update("searches", pa.Table.from_pylist([row], schema=schema.SEARCHES.arrow()))
        self._row, self.name = row, row["name"]

    def _whole(self, node: str, mark: str) -> int:
        current = self._current()
        unmarked = [i for i in cluster_nodes.members(self._lake, [node]) if i in self._rows and i not in current]
        self._write([_Mark(i, mark, 0, node) for i in unmarked])
        return len(unmarked)

    def _write(self, marks: Sequence[_Mark]) -> None:
        unknown = [m.image_id for m in marks if m.image_id not in self._rows]
        if unknown:
            raise BadInput(f"the image {unknown[0]} is not in this search")
        _save(self._lake, self.id, marks)
        self._take(marks)

    def _take(self, marks: Sequence[_Mark]) -> None:
        self._marks.extend(marks)
        for word, value in (("yes", 1), ("no", -1), ("none", 0)):
            rows = [self._rows[m.image_id] for m in marks if m.mark == word and m.image_id in self._rows]
            if rows:
                self._active.mark(rows, value)

    def _current(self) -> dict[str, _Mark]:
        """image_id -> its latest mark, in the order of those marks."""
        current: dict[str, _Mark] = {}
        for mark in self._marks:
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
) -> SavedSearch:
    """Starts a search from examples (image or prediction ids of the kind) in the whole lake, a filter or a node.

    Examples may be outside the filter or node. Raises BadInput without examples, for unknown ids or nodes, and for
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
        "predictions_version": lake.version("samples"),
        "created_at": store.now(),
    }
    search = SavedSearch(lake, row)  # raises before anything is written
    # Marks first: the row in searches is the commit.
    search._write([_Mark(i, "yes", 0, None) for i in row["examples"]])
    lake.insert("searches", pa.Table.from_pylist([row], schema=schema.SEARCHES.arrow()))
    return search


def resume(lake: Lake, search: str) -> SavedSearch:
    """Opens a saved search, with the images that arrived since. Raises BadInput if the lake does not have it."""
    rows = lake.dataset("searches").to_table(filter=f"id = {literal(search)}").to_pylist()
    if not rows:
        raise BadInput(f"no search {search!r}; `lakeloop isolate --list` names them")
    return SavedSearch(lake, rows[0])


def list(lake: Lake) -> Sequence[SearchSummary]:
    """Every search, the newest first."""
    rows = connections.query(
        lake,
        """
        SELECT s.id, s.name, s.embedder, s.created_at, count(*) FILTER (WHERE mark = 'yes') AS found,
               count(*) FILTER (WHERE m.node IS NULL AND page > 0) AS looked
        FROM searches s LEFT JOIN marks_current m ON m.search = s.id GROUP BY ALL ORDER BY s.created_at DESC, s.id""",
    )
    return [SearchSummary(**row) for row in rows.to_pylist()]


def _advice(left: RemainingEstimate | None, found: int, pages: int, last_page: int, unmarked: int) -> tuple[bool, str]:
    if not unmarked:
        return True, "Every image is marked."
    if left is None:
        if not pages:
            return False, "Mark the images of the same kind; the next page learns from it."
        return False, "No estimate yet: mark images of the kind and others first."
    few = left.expected <= MAX_LEFT_SHARE * (found + left.expected)
    if left.next_page < MIN_NEXT_PAGE and last_page:
        return False, f"Few remain, but the last page still had {last_page:,}: mark one more page."
    if left.next_page < MIN_NEXT_PAGE and few:
        return True, f"You can stop: about {left.expected:,.0f} may remain, and the last page had none."
    if left.next_page < MIN_NEXT_PAGE:
        pages_each = 1 / max(left.next_page, 1e-3)
        return False, f"About {left.expected:,.0f} may remain, but expect only one in about {pages_each:,.0f} pages."
    return False, f"About {left.expected:,.0f} remain; the next page should show about {left.next_page:,.0f}."


def _points(lake: Lake, record: EmbedderRecord, row: dict[str, Any]) -> tuple[Any, np.ndarray]:
    """image_ids, sorted, and their whitened points (n, d)."""
    image_ids: Sequence[str] | None = None
    if row["node"] is not None:
        image_ids = cluster_nodes.members(lake, [row["node"]])
    elif row["where"] is not None:
        image_ids = filters.images(lake, row["where"])
    if image_ids is None:
        count = lake.dataset("samples").count_rows(f"{record.column} is not null")
    else:
        image_ids = sorted({*image_ids, *row["examples"]})
        count = len(image_ids)
    share = whitening.FIT_SAMPLE / max(1, count)
    batches: Iterable[tuple[Any, np.ndarray]] = vector_batches(lake, record, image_ids)
    if share >= 1:  # few enough for memory: the table is read once
        batches = [*batches]
    # An id is a hash: its first digits choose a sample, always the same.
    sampled = [vectors[[int(name[:8], 16) < share * 16**8 for name in names]] for names, vectors in batches]
    if not sampled:
        return [], np.zeros((0, 1), np.float32)
    whitener = whitening.fit(np.concatenate(sampled))
    names: Any = []
    points = []
    for batch_names, vectors in batches if share >= 1 else vector_batches(lake, record, image_ids):
        names += batch_names
        points.append(whitener.transform(vectors))
    order = np.argsort(np.asarray(names))
    return [names[i] for i in order.tolist()], np.concatenate(points)[order]


def _images(lake: Lake, ids: Sequence[str]) -> Any:
    """The distinct images of image and prediction ids, in their order. Raises BadInput for an unknown id."""
    images: dict[str, None] = {}
    for identifier in ids:
        if identity.kind(identifier) == "image":
            images[identifier] = None
            continue
        prediction_id = str(identity.as_uuid(identifier))
        rows = lake.look_up("samples", ["image_id"], "prediction_id", [prediction_id])
        if not rows.num_rows:
            raise BadInput(f"the lake has no prediction_id {identifier}")
        images[rows["image_id"][0].as_py()] = None
    return [*images]


def _why_missing(lake: Lake, image_id: str, record: EmbedderRecord) -> str:
    if not lake.known("samples", "image_id", [image_id]):
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
    # The event_id orders marks of the same moment.
    events = sorted(str(uuid.uuid4()) for _ in marks)
    rows = [
        {**vars(m), "event_id": e, "search": search, "timestamp": moment} for m, e in zip(marks, events, strict=True)
    ]
    lake.insert("marks", pa.Table.from_pylist(rows, schema=schema.MARKS.arrow()))
