"""Black and white of a source's images of more than 8 bits: declared, recorded at its first ingest, or found.

A source is what was given to ingest: a folder, a log or a data set, by its absolute path. Its levels are found on its
first images, and hold for all that come from it later, so that equal values are equally bright in all of them. They
are recorded with each image; if they change, thumbnails are made again and vectors are removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa

from lake.errors import BadInput
from lake.images import decode, levels
from lake.images.image_header import pixel_type
from lake.images.levels import Levels
from lake.images.workers import WorkerDied, WorkerPool, grouped
from lake.storage import blobs, image_rows, schema
from lake.storage.lance_files import columns
from lake.storage.store import literal

if TYPE_CHECKING:
    from lake.storage.store import Lake

T = TypeVar("T")
WhitePoint = Levels | Literal["auto"]

# The first images of a source, on which its levels are found: as many, or as many bytes.
SAMPLE_IMAGES, SAMPLE_BYTES = 64, 256 << 20
_TASK_IMAGES, _TASK_BYTES = 8, 32 << 20
_CHANGED_AT_ONCE = 512


def parse(text: str) -> WhitePoint:
    """`auto`, WHITE, or BLACK..WHITE, numbers of the files. Raises BadInput."""
    if text == "auto":
        return "auto"
    black, dots, white = text.partition("..")
    try:
        values = Levels(float(black), float(white)) if dots else Levels(0.0, float(text))
    except ValueError:
        raise BadInput(f"--white-point {text!r}: write auto, WHITE or BLACK..WHITE, e.g. 4095 or 200..4095") from None
    if not -levels.ABSURD < values.black < values.white < levels.ABSURD:
        raise BadInput(f"--white-point {text!r}: white must be greater than black, and both finite")
    return values


class SourceLevels:
    """The levels of one source, by pixel type. `notes`: sentences for the report."""

    def __init__(
        self, lake: Lake, source: str | None, white_point: WhitePoint | None, max_megapixels: float, workers: int
    ) -> None:
        self._lake, self._source, self._stated = lake, source, white_point
        self._max_megapixels, self._workers = max_megapixels, workers
        self._is_loaded = False
        self._declared: dict[str, Levels] = {}
        self._found: dict[str, Levels] = {}
        self._tried: set[str] = set()
        self._outdated: list[str] = []
        self.notes: list[str] = []
        if isinstance(white_point, Levels):
            self._declared = dict.fromkeys(levels.PIXEL_TYPES, white_point)

    @property
    def declared(self) -> decode.Declared | None:
        """What decoding needs; None if the source has no images of more than 8 bits so far."""
        if not self._declared and not self._found:
            return None
        origins = dict.fromkeys(self._found, self._origin("source"))
        origins |= dict.fromkeys(self._declared, self._origin("declared"))
        return decode.Declared(self._found | self._declared, origins, tuple(self._declared))

    def settled(self, groups: Iterable[Sequence[T]], file: Callable[[T], bytes | None]) -> Iterator[Sequence[T]]:
        """The groups, unchanged and in order, each when the levels of its images are known.

        `file` gives the bytes of a new image. Groups are held back until enough images are there to find levels on.
        """
        held: list[Sequence[T]] = []
        sample: list[bytes] = []
        for group in groups:
            deep = [data for item in group if (data := file(item)) is not None and self._is_unknown(data)]
            if not deep and not held:
                yield group
                continue
            held.append(group)
            sample += deep
            if len(sample) >= SAMPLE_IMAGES or sum(map(len, sample)) >= SAMPLE_BYTES:
                self._find(sample)
                yield from held
                held, sample = [], []
        if held:
            self._find(sample)
            yield from held

    def see_known(self, image_id: str, data: bytes, recorded_from: str | None) -> None:
        """Notes an image that the lake has, with its bytes and what its levels are from, if they may be others now."""
        if (recorded_from is None or isinstance(self._stated, Levels)) and pixel_type(data) is not None:
            self._outdated.append(image_id)

    def change(self) -> None:
        """Gives stored images the levels that hold now, and removes the vectors of those that change."""
        stored = self._stored() if self._stated is not None else []
        image_ids = list(dict.fromkeys([*self._outdated, *stored]))
        if not image_ids:
            return
        self._load()
        if self.declared is None:
            self._find([image.data for image in blobs.images(self._lake, image_ids[:SAMPLE_IMAGES])])
        changed = 0
        with self._pool(image_rows.DECODER, image_rows.ANSWER_BYTES) as pool:
            for start in range(0, len(image_ids), _CHANGED_AT_ONCE):
                changed += self._change(image_ids[start : start + _CHANGED_AT_ONCE], pool)
        if changed:
            self.notes.append(
                f"{changed:,} images that the lake had have another black or white now; their thumbnails were made "
                "again and their vectors removed: run lakeloop embed"
            )

    def _change(self, image_ids: Sequence[str], pool: WorkerPool) -> int:
        names = ["image_id", "pixel_type", "black", "white", "white_from"]
        before = {
            row.pop("image_id"): row for row in self._lake.look_up("images", names, "image_id", image_ids).to_pylist()
        }
        rows, thumbnails = [], []
        parts = grouped(blobs.images(self._lake, image_ids), lambda i: len(i.data), _TASK_IMAGES, _TASK_BYTES)
        tasks = ((([i.data for i in part], self._max_megapixels, self.declared), part) for part in parts)
        for result, part in pool.map(tasks):
            files = [image.data for image in part]
            decoded_files = image_rows.settled(result, files, self._max_megapixels, self.declared)
            for image, decoded in zip(part, decoded_files, strict=True):
                if isinstance(decoded, str):
                    continue
                row = image_rows.levels_columns(decoded)
                if row != before[image.image_id]:
                    rows.append({"image_id": image.image_id, **row})
                    if not _are_equal(before[image.image_id], row):
                        thumbnails.append(image_rows.thumbnail_row(image.image_id, decoded))
        if rows:
            types = schema.IMAGES.arrow()
            columns.set_values(
                self._lake, "images", pa.Table.from_pylist(rows, pa.schema([types.field(n) for n in names]))
            )
        if thumbnails:
            changed = [row["image_id"] for row in thumbnails]
            self._lake.update("thumbnails", pa.Table.from_pylist(thumbnails, schema=schema.THUMBNAILS.arrow()))
            self._remove_vectors(changed)
        return len(thumbnails)

    def _remove_vectors(self, image_ids: Sequence[str]) -> None:
        rows = self._lake.look_up("samples", ["prediction_id"], "image_id", image_ids)
        types = self._lake.dataset("samples").schema
        for record in self._lake.embedders():
            if record.dim is not None and rows.num_rows:
                nulls = pa.nulls(rows.num_rows, types.field(record.column).type)
                columns.set_values(self._lake, "samples", rows.append_column(types.field(record.column), nulls))
        quoted = ",".join(map(literal, image_ids))
        self._lake.delete("embedding_failures", f"image_id in ({quoted})")

    def _is_unknown(self, data: bytes) -> bool:
        """Whether levels must be found for images like this file."""
        kind = pixel_type(data)
        if kind is None or isinstance(self._stated, Levels):
            return False
        self._load()
        return kind not in self._declared and kind not in self._found and kind not in self._tried

    def _load(self) -> None:
        """Loads the levels that an earlier ingest of this source recorded; with `auto`, finds them again."""
        if self._is_loaded or self._source is None or isinstance(self._stated, Levels):
            return
        self._is_loaded = True
        if self._stated == "auto":
            self._find([image.data for image in blobs.images(self._lake, self._stored()[:SAMPLE_IMAGES])])
            return
        rows = self._lake.scan("images", ["pixel_type", "black", "white", "white_from"], self._mine())
        for row in rows.to_pylist():
            recorded = self._declared if row["white_from"] == self._origin("declared") else self._found
            recorded[row["pixel_type"]] = Levels(row["black"], row["white"])

    def _find(self, sample: Sequence[bytes]) -> None:
        spreads: dict[str, list[levels.Spread]] = defaultdict(list)
        self._tried |= {kind for data in sample if (kind := pixel_type(data)) is not None}
        with self._pool("lake.images.decode:spread_many", 1 << 20) as pool:
            parts = grouped(sample, len, _TASK_IMAGES, _TASK_BYTES)
            for result, _ in pool.map((([*part], self._max_megapixels), None) for part in parts):
                for spread in [] if isinstance(result, WorkerDied) else result:
                    if spread is not None:
                        spreads[spread.pixel_type].append(spread)
        for kind, found in spreads.items():
            if kind not in self._found:
                self._found[kind] = levels.found(found)
                black, white = self._found[kind].black, self._found[kind].white
                self.notes.append(
                    f"in {kind} images that do not say so themselves, {white:g} is shown as white and {black:g} as "
                    f"black, by the values of {len(found):,}; if that is wrong: --white-point WHITE or BLACK..WHITE"
                )

    def _stored(self) -> list[str]:
        """The images whose levels are those of this source."""
        if self._source is None:
            return []
        image_ids: list[str] = self._lake.scan("images", ["image_id"], self._mine())["image_id"].to_pylist()
        return image_ids

    def _mine(self) -> str:
        return f"white_from in ({literal(self._origin('source'))}, {literal(self._origin('declared'))})"

    def _origin(self, how: str) -> str:
        return how if self._source is None else f"{how} {self._source}"

    def _pool(self, function: str, answer_bytes: int) -> WorkerPool:
        return WorkerPool(function, self._workers, answer_bytes=answer_bytes)


def _are_equal(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the pixels are the same. Before migration 10, integers of up to 16 bits were shown as 0 to 65535."""
    black, white = before["black"], before["white"]
    if white is None and after["pixel_type"] in ("uint16", "int32"):
        black, white = 0, 65535
    return (black, white) == (after["black"], after["white"])
