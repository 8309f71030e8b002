"""Merges a table's small fragments into larger ones: few fragments to read, and no byte rewritten many times.

Only neighbours are merged, so that rows keep their order of arrival and a retention policy can drop whole fragments.
It decides by sizes, by the times of images, and by whether vectors are still missing; it does not know versions,
indexes, or who may call it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.storage.lance_files import nulls, table_files

if TYPE_CHECKING:
    import lance

    from lake.storage.store import Lake


@dataclass(frozen=True)
class FragmentSize:
    """Rows and bytes: of a fragment, or the target up to which fragments are merged."""

    rows: int
    bytes: int

    def share(self, whole: FragmentSize) -> float:
        """Its share of `whole`, by rows or by bytes, whichever is larger."""
        return max(self.rows / whole.rows, self.bytes / whole.bytes)


# Each merge of images copies their bytes; rows of the other tables are small, vectors aside.
TARGETS = {"images": FragmentSize(8_192, 256 << 20)}
TARGET = FragmentSize(65_536, 256 << 20)
# Adding vectors rewrites the column for a whole fragment, so a fragment that lacks vectors stays small.
WAITING_TARGET = FragmentSize(8_192, 256 << 20)
# A fragment is rewritten if a larger share of its rows is deleted.
MOST_DEAD = {"images": 0.5}
MOST_DEAD_DEFAULT = 0.1
# A merged fragment goes to the end of the table: without a limit, images of one month would lie among another's.
MOST_APART = dt.timedelta(days=1)
# In passing, this many neighbours of about one size are merged; a thorough step merges any two.
FAN_IN = 16

Span = tuple[dt.datetime, dt.datetime]


@dataclass(frozen=True)
class Fragment:
    """A fragment as `plan` sees it: `size` is that of its live rows, `dead` the share of deleted rows, 0 to 1.

    `waiting`: some of its vectors are still missing. `span`: the times of its rows, if they matter.
    """

    id: int
    size: FragmentSize
    dead: float
    waiting: bool = False
    span: Span | None = None

    def mixes(self, other: Fragment) -> bool:
        """Whether it may be merged with its neighbour."""
        if self.waiting != other.waiting or self.span is None or other.span is None:
            return self.waiting == other.waiting
        return max(self.span[0] - other.span[1], other.span[0] - self.span[1]) <= MOST_APART


def merge(lake: Lake, name: str, *, fan_in: int = 2, over: Callable[[], bool] = lambda: False) -> bool:
    """Merges small fragments, at least `fan_in` neighbours of about one size, with one commit per group.

    Only for the leader. Returns False if `over` stopped it before the end.
    """
    dataset = lake.dataset(name)
    fragments = fragments_of(dataset, _blob_bytes(dataset))
    groups = list(plan(name, fragments, fan_in))
    # Only for the fragments that would be merged: it reads rows.
    traits = _traits(lake, name, {i for group in groups if len(group) > 1 for i in group})
    if traits:
        groups = list(plan(name, [replace(f, **traits.get(f.id, {})) for f in fragments], fan_in))
    for group in groups:
        if over():
            return False
        rewrite(lake, name, group)
    return True


def rewrite(lake: Lake, name: str, group: Sequence[int]) -> None:
    """Rewrites neighbouring fragments as one, without their deleted rows. One commit."""

    def write() -> None:
        dataset = lake.dataset(name)
        fragments = dataset.get_fragments()
        chosen = [f for f in fragments if f.fragment_id in set(group)]
        if not chosen:  # gone meanwhile: all its rows were deleted
            return
        dataset.optimize.compact_files(
            target_rows_per_fragment=max(2, sum(f.physical_rows for f in chosen)),
            materialize_deletions_threshold=0.0,
            excluded_fragment_ids=[f.fragment_id for f in fragments if f.fragment_id not in set(group)],
            # A batch of blobs is read as a whole.
            batch_size=256 if name == "images" else None,
            num_threads=1,
        )

    lake.commit(name, write)


def rewrite_wasteful(lake: Lake, name: str) -> int:
    """Rewrites only the fragments with too many deleted rows; returns their number."""
    chosen = [f.id for f in fragments_of(lake.dataset(name), {}) if _wasteful(name, f)]
    for fragment in chosen:
        rewrite(lake, name, [fragment])
    return len(chosen)


def plan(name: str, fragments: Sequence[Fragment], fan_in: int) -> Iterator[list[int]]:
    """Groups of neighbours to merge, and single fragments with too many deleted rows."""
    run: list[Fragment] = []
    for fragment in fragments:
        small = fragment.size.share(_target(name, fragment)) < 0.5
        if run and not (small and run[-1].mixes(fragment)):
            yield from _merges(name, run, fan_in)
            run = []
        if small:
            run.append(fragment)
        elif _wasteful(name, fragment):
            yield [fragment.id]
    if run:
        yield from _merges(name, run, fan_in)


def _merges(name: str, run: Sequence[Fragment], fan_in: int) -> Iterator[list[int]]:
    """Groups within a run of neighbours that are all small."""
    group: list[Fragment] = []
    total = FragmentSize(0, 0)
    target = _target(name, run[0])
    for fragment in run:
        grown = FragmentSize(total.rows + fragment.size.rows, total.bytes + fragment.size.bytes)
        if group and grown.share(target) > 1:
            yield [f.id for f in group]
            group, grown = [], fragment.size
        group.append(fragment)
        total = grown
    start = 0 if total.share(target) >= 0.5 else _alike_from(group, target, fan_in)
    if len(group) - start > 1:
        yield [f.id for f in group[start:]]
        group = group[:start]
    yield from ([f.id] for f in group if _wasteful(name, f))


def _alike_from(group: Sequence[Fragment], target: FragmentSize, fan_in: int) -> int:
    """The first index from which a group has `fan_in` fragments of about one size; its length if there is none."""
    for start in range(len(group) - fan_in + 1):
        shares = [f.size.share(target) for f in group[start:]]
        if fan_in == 2 or sum(share * FAN_IN > max(shares) for share in shares) >= fan_in:
            return start
    return len(group)


def _wasteful(name: str, fragment: Fragment) -> bool:
    return fragment.dead > MOST_DEAD.get(name, MOST_DEAD_DEFAULT)


def _target(name: str, fragment: Fragment) -> FragmentSize:
    return WAITING_TARGET if fragment.waiting else TARGETS.get(name, TARGET)


def fragments_of(dataset: lance.LanceDataset, blobs: dict[str, int]) -> list[Fragment]:
    """The table's fragments in order; `blobs` are the bytes beside data files, by data file, if they count."""
    listed = []
    for fragment in dataset.get_fragments():
        physical = max(1, fragment.physical_rows)
        live = physical - fragment.num_deletions
        size = sum((f.file_size_bytes or 0) + blobs.get(Path(f.path).stem, 0) for f in fragment.metadata.files)
        listed.append(Fragment(fragment.fragment_id, FragmentSize(live, size * live // physical), 1 - live / physical))
    return listed


def _blob_bytes(dataset: lance.LanceDataset) -> dict[str, int]:
    """Bytes of the blobs beside data files, by the data file's name without its suffix."""
    sizes: dict[str, int] = {}
    for file in table_files.present(dataset):
        folder, slash, _ = file.path.removeprefix("data/").partition("/")
        if file.path.startswith("data/") and slash:
            sizes[folder] = sizes.get(folder, 0) + file.size
    return sizes


def _traits(lake: Lake, name: str, chosen: Collection[int]) -> dict[int, dict[str, Any]]:
    """`waiting` and `span` of these fragments, which also decide what may be merged."""
    import pyarrow.compute as pc

    dataset = lake.dataset(name)
    columns = [r.column for r in lake.embedders() if r.dim is not None] if name == "samples" else []
    traits: dict[int, dict[str, Any]] = {}
    for fragment in (f for f in dataset.get_fragments() if f.fragment_id in chosen):
        if columns:
            lacking = max(len(nulls.of_fragment(dataset, fragment, column)) for column in columns)
            waits = lacking > fragment.count_rows("image_status is not null")  # rows of unreadable images get none
            traits[fragment.fragment_id] = {"waiting": waits}
        elif name == "images":
            times = pc.min_max(fragment.to_table(columns=["ingested_at"])["ingested_at"]).as_py()
            traits[fragment.fragment_id] = {"span": (times["min"], times["max"])} if times["min"] else {}
    return traits
