"""The content of a frozen slice version, to be pulled by another machine: a manifest, and all images as one stream.

    content = transfer.of_slice(lake, slices.get(lake, "night@3"))
    transfer.entries(lake, content, "jsonl", 0, 1000)      # path, size, hash and row of each image, by image_id
    transfer.read(lake, content, first_byte)               # the bytes of all images, one after another, from there on

The files are those of an export (`lake/slices/export.py`) in the same format, byte for byte. Nothing here knows HTTP.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake import slices
from lake.errors import BadInput, CouldNot
from lake.formats import imagefolder, marks, metadata
from lake.formats.annotation import CLASSIFICATION, ExportSample, as_json
from lake.formats.export_files import ExportPart, ExportPlan
from lake.slices import ground_truth
from lake.sql.per_lake import PerLake
from lake.storage import blobs
from lake.storage.blobs import StoredImage

if TYPE_CHECKING:
    from lake.slices import Slice
    from lake.storage.store import Lake

# Bytes of images that `read` has in memory, and reads at once.
BATCH_BYTES = 8 << 20
# A hundred megabytes each for a million images.
MOST_KEPT = 3
NO_BYTES = "its bytes were not kept"


@dataclass(frozen=True)
class SliceContent:
    """The images of a frozen version that have bytes, by image_id, and their place in the stream of all.

    `starts`: the position of each image's first byte, and at the end the number of all bytes, int64 (n + 1).
    `left_out`: image_ids without bytes. `tag`: a hash of ids, labels and left_out; equal contents have equal tags.
    """

    slice: Slice
    images: pa.Table
    starts: np.ndarray
    left_out: list[str]
    tag: str
    version: int = field(compare=False)  # of table images, at which `images` has the row ids

    @property
    def bytes(self) -> int:
        return int(self.starts[-1])

    def __len__(self) -> int:
        return int(self.images.num_rows)


_lock = threading.Lock()
_kept: PerLake[OrderedDict[tuple[Any, ...], SliceContent]] = PerLake(OrderedDict)


def of_slice(lake: Lake, slice_: Slice) -> SliceContent:
    """The content of a frozen version, without erased images. The last few are kept in memory.

    Raises BadInput for a live slice: its content may change at any time.
    """
    if slice_.live:
        raise BadInput(f"{slice_.id} is live, so its images may change while they are read: freeze it first")
    kept = _kept(lake)
    key = (slice_.id, slice_.created_at, lake.version("forgotten"))
    with _lock:
        content = kept.get(key)
        if content is None:
            content = _located(lake, slice_)
            if content.images["label_events"].null_count:  # its labels are today's
                return _located(lake, slice_)
            kept[key] = content
            while len(kept) > MOST_KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return content


def entries(
    lake: Lake, content: SliceContent, format: str, first: int, count: int
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The manifest's entries of `count` images from number `first` on, and counts of what the format leaves out.

    An entry: `path`, `bytes`, `sha256`, and for jsonl `row`, the image's line of metadata.jsonl. Raises BadInput for an
    unknown format.
    """
    if format not in FORMATS:
        raise BadInput(f"format is {format!r}; a pull has one of {', '.join(FORMATS)}")
    page = content.images.slice(first, count)
    truths = ground_truth.of_images(lake, page.select(["image_id", "label_events"]))
    part = ExportPart(Path(), ExportPlan(content.slice.id, len(content)), 0)
    made = []
    for number, row in enumerate(page.drop_columns(["label_events"]).to_pylist(), first):
        image = StoredImage(row["image_id"], b"", row["format"], row["width"], row["height"], row["source"])
        sample = ExportSample(number, image, dict(sorted(truths.get(image.image_id, {}).items())))
        facts = FORMATS[format](part, sample)
        made.append({"bytes": row["size_bytes"], "sha256": image.image_id, **facts})
    return made, dict(part.unsaid)


def read(lake: Lake, content: SliceContent, first_byte: int, end_byte: int | None = None) -> Iterator[bytes]:
    """The bytes from `first_byte` up to `end_byte` (exclusive; None: the end) of the stream of all images, in parts.

    Raises CouldNot if the bytes of an image were deleted since: a later `of_slice` has another tag then.
    """
    starts = content.starts
    end_byte = content.bytes if end_byte is None else min(end_byte, content.bytes)
    index = int(np.searchsorted(starts, first_byte, "right")) - 1
    position = first_byte
    while position < end_byte:
        last = max(index + 1, int(np.searchsorted(starts, starts[index] + BATCH_BYTES, "right")) - 1)
        last = min(last, int(np.searchsorted(starts, end_byte, "left")))
        data = b"".join(_read(lake, content, index, last))
        first, end = position - int(starts[index]), end_byte - int(starts[index])
        yield data if first == 0 and end >= len(data) else data[first:end]
        position, index = int(starts[last]), last


def _read(lake: Lake, content: SliceContent, first: int, last: int) -> list[bytes]:
    rows = content.images.slice(first, last - first)
    sizes = rows["size_bytes"].to_pylist()
    try:
        row_ids = rows["_rowid"].to_numpy().astype(np.uint64)
        images = blobs.read(lake.dataset("images", content.version), row_ids)
    except (OSError, ValueError, KeyError, RuntimeError):  # maintenance removed that version of the table
        images = [image.data for image in blobs.images(lake, rows["image_id"].to_pylist())]
    if [len(data) for data in images] != sizes:
        with _lock:
            _kept(lake).clear()
        raise CouldNot(f"images of {content.slice.id} were deleted while they were read; start the pull again")
    return images


def _located(lake: Lake, slice_: Slice) -> SliceContent:
    contents = ground_truth.current_events(lake, slices.contents(lake, slice_))
    version = lake.version("images")
    located = blobs.locate(lake, contents["image_id"].to_pylist(), version).sort_by("image_id").combine_chunks()
    has_bytes = pc.is_in(contents["image_id"], located["image_id"].combine_chunks())
    left_out = contents["image_id"].filter(pc.invert(has_bytes)).to_pylist()
    images = located.append_column("label_events", contents.filter(has_bytes)["label_events"])
    digest = hashlib.sha256(as_json([slice_.id, str(slice_.created_at), left_out]).encode())
    for row in zip(images["image_id"].to_pylist(), images["label_events"].to_pylist(), strict=True):
        digest.update(as_json(row).encode())
    starts = np.concatenate([[0], np.cumsum(images["size_bytes"].to_numpy())]).astype(np.int64)
    return SliceContent(slice_, images, starts, left_out, digest.hexdigest()[:32], version)


def _as_jsonl(part: ExportPart, sample: ExportSample) -> dict[str, Any]:
    path = f"images/{sample.name}"
    return {"path": path, "row": as_json(metadata.row_of(part, sample, path))}


def _in_folders(part: ExportPart, sample: ExportSample) -> dict[str, Any]:
    sample = replace(sample, ground_truths=marks.without(part, sample.ground_truths))
    imagefolder.leave_out(part, sample)
    truth = sample.ground_truths.get(CLASSIFICATION)
    return {"path": imagefolder.path_of(sample), "label": truth.label if truth else None}


FORMATS: dict[str, Callable[[ExportPart, ExportSample], dict[str, Any]]] = {
    "jsonl": _as_jsonl,
    "imagefolder": _in_folders,
}
