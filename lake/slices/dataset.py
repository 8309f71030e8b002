"""A slice as a map-style dataset: `len`, `[i]`, batches; torch's DataLoader takes it as it is, and torch is not needed.

    cells = lake.slice("rainy_night").dataset(transform=to_tensor)
    picture, target = cells[0]
    cells.classes, cells.table()

Images are in the order they are stored. The labels are those the slice was frozen with, all in memory. It is pinned to
the version of `images` it was made at, and opens the lake where it is used: a copy of it that was pickled into a worker
process has a lake of its own.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from lake import slices
from lake.errors import BadInput, CouldNot
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, TASKS, GroundTruth
from lake.images import decode
from lake.regions import masks
from lake.slices import ground_truth
from lake.storage import blobs
from lake.storage.store import Lake

if TYPE_CHECKING:
    from PIL import Image

    from lake.slices import Slice

Task = Literal["classification", "detection", "segmentation"]


class SliceDataset:
    """The images of one version of a slice that have bytes and a label of the task.

    `task`: what a target is; None: the only task the slice has labels of, or none at all, and then every image counts
    and its target is None. A target of

    - classification: the class's number in `classes`
    - detection: {"boxes": float32 (n, 4) as x1, y1, x2, y2 in pixels, "labels": int64 (n,)}
    - segmentation: these and "masks": bool (n, height, width)

    Images without a label for detection, but for segmentation, have the boxes of that. `transform` gets the upright RGB
    PIL image, `target_transform` the target. `missing`: images of the slice whose bytes the lake has not; `unlabelled`:
    those without a label of the task.
    """

    def __init__(
        self,
        lake: Lake,
        made: Slice,
        *,
        task: Task | None = None,
        classes: Sequence[str] | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.uri, self.storage_options = lake.uri, lake.storage_options
        self.slice = made.id
        self.transform, self.target_transform = transform, target_transform
        contents = ground_truth.current_events(lake, slices.contents(lake, made))
        said = ground_truth.of_images(lake, contents)
        self.task = _task(said, task)
        self.version = lake.version("images")
        found = blobs.locate(lake, contents["image_id"].to_pylist(), self.version)
        self.missing = contents.num_rows - found.num_rows
        names = found["image_id"].to_pylist()
        self._truths = [_of(said.get(name, {}), self.task) for name in names]
        kept = [i for i, t in enumerate(self._truths) if t is not None or self.task is None]
        self.unlabelled = len(names) - len(kept)
        self._rows: pa.Table = found.take(kept)
        self._truths = [self._truths[i] for i in kept]
        self._row_ids = self._rows["_rowid"].to_numpy().astype(np.uint64)
        self.classes = [*classes] if classes is not None else _classes(self._truths)
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}
        unknown = set(_classes(self._truths)) - {*self.classes}
        if unknown:
            name = sorted(unknown)[0]
            near = difflib.get_close_matches(name, self.classes, 3)
            raise BadInput(f"the slice has labels {name!r}, which is not among the classes; near: {', '.join(near)}")
        self._opened: Any = lake.dataset("images", self.version)
        self._process = os.getpid()

    def __repr__(self) -> str:
        rest = f", {self.unlabelled:,} without a label" * bool(self.unlabelled)
        rest += f", {self.missing:,} without bytes" * bool(self.missing)
        return f"<{len(self):,} images of {self.slice} for {self.task}: {len(self.classes)} classes{rest}>"

    def __len__(self) -> int:
        return len(self._row_ids)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Several at once, in the order asked for: one read. torch's DataLoader calls it by itself."""
        picked = np.arange(len(self))[np.asarray(indices, np.int64)]
        return [self.sample(int(i), data) for i, data in zip(picked, self.read(picked), strict=True)]

    def read(self, indices: np.ndarray) -> list[bytes]:
        """The files' bytes, in the order asked for."""
        return blobs.read(self._images(), self._row_ids[indices]) if len(indices) else []

    def sample(self, index: int, data: bytes) -> tuple[Any, Any]:
        """What `[index]` gives of a file's bytes."""
        picture = decode.pixels(decode.open_image(data))
        target = self.target(index)
        return (
            picture if self.transform is None else self.transform(picture),
            target if self.target_transform is None else self.target_transform(target),
        )

    def target(self, index: int) -> Any:
        """The target of an image, before `target_transform`."""
        said = self._truths[index]
        if said is None or self.task is None:
            return None
        if said.task == CLASSIFICATION:
            return self.class_to_idx[str(said.label)]
        found = said.instances()
        corners = [(b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]) for b, _ in found]
        names = [(m or b)["label"] or "" for b, m in found]
        target = {
            "boxes": np.array(corners, np.float32).reshape(-1, 4),
            "labels": np.array([self.class_to_idx[n] for n in names], np.int64),
        }
        if self.task == SEGMENTATION:
            size = (self._rows["height"][index].as_py(), self._rows["width"][index].as_py())
            drawn = [masks.decode(m["counts"], m["height"], m["width"]) for _, m in found if m is not None]
            target["masks"] = np.stack(drawn) if drawn else np.zeros((0, *size), bool)
        return target

    def table(self) -> pa.Table:
        """image_id, width, height, format, source, and label, boxes and masks as in `labels`: a row an image."""
        from lake.storage import schema

        columns = self._rows.select(["image_id", "width", "height", "format", "source"])
        for name, kind in (("label", pa.string()), ("boxes", schema.BOXES), ("masks", schema.MASKS)):
            values = [None if t is None else getattr(t, name) for t in self._truths]
            columns = columns.append_column(name, pa.array(values, kind))
        return columns

    def _images(self) -> Any:
        """The table of images, opened in this process. Raises CouldNot in a forked one, where Lance would hang."""
        if self._process != os.getpid():
            raise CouldNot(
                "the dataset was forked into this process, where Lance does not work: give the DataLoader"
                ' multiprocessing_context="forkserver"'
            )
        if self._opened is None:
            self._opened = Lake(self.uri, self.storage_options).dataset("images", self.version)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = os.getpid()


def _task(said: dict[str, dict[str, GroundTruth]], task: str | None) -> str | None:
    present = sorted({t for of in said.values() for t in of})
    if task is None:
        if len(present) > 1:
            raise BadInput(f"the slice has labels for {' and '.join(present)}; say which with task=")
        return present[0] if present else None
    if task not in TASKS:
        raise BadInput(f"task {task!r} is none of {', '.join(TASKS)}")
    if task not in present and not (task == DETECTION and SEGMENTATION in present):
        raise BadInput(
            f"no image of the slice has a label for {task}; there are labels for {', '.join(present) or 'none'}"
        )
    return task


def _of(said: dict[str, GroundTruth], task: str | None) -> GroundTruth | None:
    if task == DETECTION and DETECTION not in said:
        return said.get(SEGMENTATION)
    return said.get(task or "")


def _classes(truths: Sequence[GroundTruth | None]) -> list[str]:
    return sorted({name for t in truths if t is not None for name in t.classes()})
