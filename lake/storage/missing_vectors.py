"""Finds the rows of samples that lack an embedder's vector, and those of them that can get one.

A process that embeds arriving images asks again and again, so facts about a fragment are kept while its files stay the
same, and a new look costs only what has changed. It never reads vectors that exist
(`lake/storage/lance_files/nulls.py`). A row is waiting if its image is readable, and the lake has the image's bytes or
its vector in another row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.storage.image_keys import keys_of
from lake.storage.image_rows import NOT_KEPT
from lake.storage.lance_files import fragments, nulls
from lake.storage.store import LOOK_UP_VALUES, literals

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lake.storage.store import Lake

Reason = Literal["waiting", "unreadable", "without_bytes"]
WAITING, UNREADABLE, WITHOUT_BYTES, UNKNOWN = range(4)


@dataclass(frozen=True)
class Gaps:
    """The rows without a vector at one version of samples.

    `dataset`: the table at that version, a handle that nobody else changes; `image_id`: strings; `key`: uint64, a
    number for the image, almost certainly unique; `arrived`: int64, microseconds since 1970 (`ingested_at`);
    `address`: uint64, the row's address in Lance at this version, ascending; `state`: uint8, WAITING, UNREADABLE or
    WITHOUT_BYTES.
    """

    dataset: Any
    image_id: pa.ChunkedArray
    key: np.ndarray
    arrived: np.ndarray
    address: np.ndarray
    state: np.ndarray

    def counts(self) -> dict[Reason, int]:
        """Numbers of distinct images; each counts for the first of the three states that one of its rows has."""
        order = np.argsort(self.key)
        key = self.key[order]
        starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else _none()
        first = np.minimum.reduceat(self.state[order], starts) if len(key) else _none()
        waiting, unreadable, without_bytes = np.bincount(first, minlength=3)[:3].tolist()
        return {"waiting": waiting, "unreadable": unreadable, "without_bytes": without_bytes}

    def waiting_among(self, image_ids: Collection[str]) -> int:
        """How many of these images wait."""
        rows = self.rows_of(image_ids)
        return len(np.unique(self.key[rows[self.state[rows] == WAITING]]))

    def rows_of(self, image_ids: Collection[str]) -> np.ndarray:
        """Positions of the rows of these images, ascending. Fast for few images."""
        names = pa.array(list(image_ids), pa.string())
        keys = np.sort(keys_of(pa.chunked_array([names])))
        if not len(keys) or not len(self.key):
            return _none()
        position = np.minimum(np.searchsorted(keys, self.key), len(keys) - 1)
        likely = np.flatnonzero(keys[position] == self.key)
        rows: np.ndarray = likely[_mask(pc.is_in(self.image_id.take(pa.array(likely)), names))]
        return rows


@dataclass
class _Part:
    """A fragment's rows without a vector. `offsets` are positions in the fragment, ascending."""

    files: tuple[str, ...]
    deletions: int
    rows: int
    offsets: np.ndarray
    image_id: pa.ChunkedArray
    key: np.ndarray
    arrived: np.ndarray
    state: np.ndarray

    def keep(self, which: np.ndarray) -> None:
        self.offsets, self.key = self.offsets[which], self.key[which]
        self.arrived, self.state = self.arrived[which], self.state[which]
        self.image_id = self.image_id.filter(pa.array(which))


class MissingVectors:
    """The rows that lack a vector in one column. For one thread; keep it, since a second look is cheap."""

    def __init__(self, lake: Lake, column: str) -> None:
        self._lake = lake
        self._column = column
        self._parts: dict[int, _Part] = {}
        # Offsets of nulls by data file; a file never changes.
        self._nulls: dict[str, np.ndarray] = {}
        self._field: int | None = None
        self._image_files: set[tuple[str, ...]] = set()
        self._seen = (-1, -1)
        self._gaps: Gaps | None = None

    def look(self) -> Gaps:
        """The rows that lack a vector at the newest version, with their states."""
        newest = self._lake.version("samples")
        # After predictions: a row's image is committed before the row.
        images = self._lake.dataset("images")
        if self._gaps is None or self._seen != (newest, images.version):
            dataset = self._handle(newest)
            self._refresh(dataset)
            self._add_arrived_bytes(images)
            self._settle(dataset)
            self._gaps = self._joined(dataset)
            self._seen = (newest, images.version)
        return self._gaps

    def rows(self) -> Gaps:
        """The rows that lack a vector at the newest version; their `state` may be out of date."""
        newest = self._lake.version("samples")
        if self._gaps is None or self._seen[0] != newest:
            dataset = self._handle(newest)
            self._refresh(dataset)
            return self._joined(dataset)
        return self._gaps

    def bytes_are_gone(self, image_ids: Sequence[str]) -> None:
        """Tells it that the bytes of these waiting images are not in the lake any more."""
        if not image_ids:
            return
        waiting = self._in_state(WAITING)
        for part, gone in zip(waiting, _which(waiting, pa.array(image_ids, pa.string())), strict=True):
            part.state[(part.state == WAITING) & gone] = WITHOUT_BYTES
        self._gaps = None

    def _handle(self, version: int) -> Any:
        # A write through the lake's own handle changes that handle for all its users.
        return self._lake.dataset("samples").checkout_version(version)

    def _refresh(self, dataset: Any) -> None:
        """Updates the parts to the dataset's version; reads only fragments whose files changed."""
        number = fragments.field_id(dataset, self._column)
        if number != self._field:  # another column of this name, in the same files
            self._parts, self._nulls, self._field = {}, {}, number
        session = nulls.session_of(dataset, self._lake.storage_options)
        parts: dict[int, _Part] = {}
        changed: list[tuple[Any, _Part]] = []
        seen: dict[str, np.ndarray] = {}
        for fragment in dataset.get_fragments():
            metadata = fragment.metadata
            files = fragments.paths(fragment)
            part = self._parts.get(fragment.fragment_id)
            offsets = None
            if (file := fragments.file_with(fragment, number)) is not None:
                path, index = file
                offsets = self._nulls.get(path)
                if offsets is None:
                    offsets = nulls.of_file(session, path, index, self._column)
                seen[path] = offsets
            if part is None or part.files != files:
                offsets = np.arange(metadata.physical_rows) if offsets is None else offsets
                no_images = pa.chunked_array([], pa.string())
                size = metadata.physical_rows
                part = _Part(files, metadata.num_deletions, size, offsets, no_images, _none(), _none(), _none())
                if len(offsets):
                    changed.append((fragment, part))
            elif part.deletions != metadata.num_deletions:
                if len(part.offsets):
                    part.keep(_alive(fragment, part))
                part.deletions = metadata.num_deletions
            parts[fragment.fragment_id] = part
        if changed:
            _load(dataset, changed)
        self._parts, self._nulls = parts, seen

    def _add_arrived_bytes(self, images: Any) -> None:
        """Images without bytes at the last look may be stored now."""
        by_files = {fragments.paths(fragment): fragment for fragment in images.get_fragments()}
        new = [fragment for files, fragment in by_files.items() if files not in self._image_files]
        without = self._in_state(WITHOUT_BYTES)
        if new and without:
            stored = images.scanner(columns=["image_id"], fragments=new).to_table()["image_id"]
            for part, came in zip(without, _which(without, stored), strict=True):
                part.state[(part.state == WITHOUT_BYTES) & came] = WAITING
        self._image_files = set(by_files)

    def _settle(self, dataset: Any) -> None:
        """Finds out whether the images of new rows have bytes, or a vector in another row."""
        unknown = self._in_state(UNKNOWN)
        if not unknown:
            return
        image_ids = _distinct([part.image_id.filter(pa.array(part.state == UNKNOWN)) for part in unknown])
        if len(image_ids) > LOOK_UP_VALUES:
            stored = self._lake.scan("images", ["image_id"])["image_id"]
        else:
            stored = pa.array(self._lake.known("images", "image_id", image_ids.to_pylist()), pa.string())
        bare = image_ids.filter(pc.invert(pc.is_in(image_ids, stored)))
        if len(bare):
            bare = bare.filter(pc.invert(pc.is_in(bare, self._embedded(dataset, bare))))
        for part, without in zip(unknown, _which(unknown, bare), strict=True):
            part.state[part.state == UNKNOWN] = np.where(without, WITHOUT_BYTES, WAITING)[part.state == UNKNOWN]

    def _embedded(self, dataset: Any, image_ids: pa.Array) -> pa.ChunkedArray:
        """Those of the images that have a vector in some row."""
        return embedded_elsewhere(dataset, image_ids, self._joined(dataset).address)["image_id"]

    def _in_state(self, state: int) -> list[_Part]:
        return [part for part in self._parts.values() if (part.state == state).any()]

    def _joined(self, dataset: Any) -> Gaps:
        parts = sorted((number, part) for number, part in self._parts.items() if len(part.offsets))
        chunks = [chunk for _, part in parts for chunk in part.image_id.chunks]
        return Gaps(
            dataset,
            pa.chunked_array(chunks, pa.string()),
            np.concatenate([_none(np.uint64), *(part.key for _, part in parts)]),
            np.concatenate([_none(), *(part.arrived for _, part in parts)]),
            np.concatenate([_none(np.uint64), *(fragments.addresses(number, part.offsets) for number, part in parts)]),
            np.concatenate([_none(np.uint8), *(part.state for _, part in parts)]),
        )


def embedded_elsewhere(dataset: Any, image_ids: pa.Array, missing: np.ndarray) -> pa.Table:
    """image_id and _rowaddr of one row with a vector for each image that has one.

    `missing`: the addresses of all rows without a vector, ascending.
    """
    columns: dict[str, Any] = {"columns": ["image_id"], "with_row_address": True}
    if len(image_ids) > LOOK_UP_VALUES:
        rows = dataset.scanner(**columns).to_table()
        rows = rows.filter(pc.is_in(rows["image_id"], image_ids))
    else:
        rows = dataset.scanner(**columns, filter=f"image_id in ({literals(image_ids.to_pylist())})").to_table()
    address = np.asarray(rows["_rowaddr"])
    position = np.minimum(np.searchsorted(missing, address), max(len(missing) - 1, 0))
    has = missing[position] != address if len(missing) else np.ones(len(address), bool)
    rows = rows.filter(pa.array(has, pa.bool_()))
    _, first = np.unique(np.asarray(rows["image_id"].to_pylist(), dtype=str), return_index=True)
    return rows.take(pa.array(first))


def _load(dataset: Any, changed: Sequence[tuple[Any, _Part]]) -> None:
    """Fills the parts of these fragments with the rows that exist and lack a vector."""
    scanner = dataset.scanner(
        columns=["image_id", "ingested_at", "image_status"],
        with_row_address=True,
        fragments=[fragment for fragment, _ in changed],
    )
    lacking = {}
    for fragment, part in changed:
        lacking[fragment.fragment_id] = np.zeros(part.rows, bool)
        lacking[fragment.fragment_id][part.offsets] = True
    batches: dict[int, list[pa.Table]] = {number: [] for number in lacking}
    for batch in scanner.to_batches():
        address = np.asarray(batch.column("_rowaddr"))
        numbers = fragments.fragment_ids(address)
        for number in np.unique(numbers).tolist():
            which = numbers == number
            which[which] = lacking[number][fragments.offsets(address[which])]
            if which.any():
                batches[number].append(pa.table(batch).filter(pa.array(which)))
    for fragment, part in changed:
        tables = batches[fragment.fragment_id]
        if not tables:
            part.offsets = _none()
            continue
        rows = pa.concat_tables(tables).sort_by("_rowaddr").combine_chunks()
        part.offsets = fragments.offsets(np.asarray(rows["_rowaddr"]))
        part.image_id = rows["image_id"]
        part.key = keys_of(part.image_id)
        part.arrived = np.asarray(rows["ingested_at"].cast(pa.int64()))
        # Bytes that were not stored may still arrive, so `images` decides.
        broken = pc.fill_null(pc.not_equal(rows["image_status"], NOT_KEPT), False)
        part.state = np.where(_mask(broken), UNREADABLE, UNKNOWN).astype(np.uint8)


def _which(parts: Sequence[_Part], image_ids: pa.Array | pa.ChunkedArray) -> list[np.ndarray]:
    """For each part, a mask of its rows about these images. All parts share one hash table."""
    whole = pa.chunked_array([chunk for part in parts for chunk in part.image_id.chunks], pa.string())
    return np.split(_mask(pc.is_in(whole, image_ids)), np.cumsum([len(part.offsets) for part in parts])[:-1])


def _alive(fragment: Any, part: _Part) -> np.ndarray:
    """A mask of the part's rows that are not deleted."""
    address = fragment.scanner(columns=[], with_row_address=True).to_table()["_rowaddr"]
    alive = np.zeros(part.rows, bool)
    alive[fragments.offsets(np.asarray(address))] = True
    mask: np.ndarray = alive[part.offsets]
    return mask


def _mask(column: Any) -> np.ndarray:
    return np.asarray(column, dtype=bool)


def _none(dtype: Any = np.int64) -> np.ndarray:
    return np.empty(0, dtype)


def _distinct(columns: Sequence[pa.ChunkedArray]) -> pa.Array:
    chunks = [chunk for column in columns for chunk in column.chunks]
    return pc.unique(pa.chunked_array(chunks, pa.string()))
