"""A slice as a map-style dataset for torch's DataLoader: `len`, `[i]`, batches. It does not need torch.

    cells = lake.slice("rainy_night").dataset(transform=to_tensor)
    picture, target = cells[0]
    cells.classes, cells.table()

Images are in storage order. The labels are those the slice was frozen with, all in memory. It reads the version of
`images` at which it was created, and opens the lake in the process that uses it: a copy pickled into a worker process
opens its own.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from lake.errors import BadInput, CouldNot
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, TASKS, GroundTruth
from lake.images import decode
from lake.regions import boxes, masks
from lake.slices import ground_truth
from lake.slices.members import contents as contents_of
from lake.storage import blobs
from lake.storage.store import Lake

if TYPE_CHECKING:
    from PIL import Image

    from lake.slices import Slice

Task = Literal["classification", "detection", "segmentation"]


class SliceDataset:
    """The images of one version of a slice that have bytes and a complete label for the task.

    `task`: None means the only task the slice has labels for; if it has no labels, every image counts and its target is
    None. A target for

    - classification: the class's number in `classes`
    - detection: {"boxes": float32 (n, 4) as x1, y1, x2, y2 in pixels, "labels": int64 (n,)}
    - segmentation: these and "masks": bool (n, height, width)

    Both also have "crowd_boxes", float32 (m, 4): the boxes of crowd regions, which are no instances and no background.

    For detection, an image with a segmentation label only has the boxes of that. `transform` gets the upright RGB PIL
    image, `target_transform` the target. `missing`: images of the slice without bytes in the lake; `unlabelled`: those
    without a label for the task; `incomplete`: those of whose label a part could not be read, which are left out.
    """

    def __init__(
        self,
        lake: Lake,
        slice_: Slice,
        *,
        task: Task | None = None,
        classes: Sequence[str] | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.uri, self.storage_options = lake.uri, lake.storage_options
        self.slice = slice_.id
        self.transform, self.target_transform = transform, target_transform
        contents = ground_truth.current_events(lake, contents_of(lake, slice_))
        truths = ground_truth.of_images(lake, contents)
        self.task = _task(truths, task)
        self.version = lake.version("images")
        rows = blobs.locate(lake, contents["image_id"].to_pylist(), self.version)
        self.missing = contents.num_rows - rows.num_rows
        names = rows["image_id"].to_pylist()
        self._truths = [_of(truths.get(name, {}), self.task) for name in names]
        self.incomplete = sum(truth is not None and truth.incomplete for truth in self._truths)
        labelled = [i for i, t in enumerate(self._truths) if self.task is None or (t is not None and not t.incomplete)]
        self.unlabelled = len(names) - len(labelled) - self.incomplete
        self._rows: pa.Table = rows.take(labelled)
        self._truths = [self._truths[i] for i in labelled]
        self._row_ids = self._rows["_rowid"].to_numpy().astype(np.uint64)
        self.classes = [*classes] if classes is not None else _classes(self._truths)
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}
        unknown = set(_classes(self._truths)) - {*self.classes}
        if unknown:
            name = sorted(unknown)[0]
            near = difflib.get_close_matches(name, self.classes, 3)
            raise BadInput(f"the slice has the label {name!r}, which is not in `classes`; near: {', '.join(near)}")
        self._opened: Any = lake.dataset("images", self.version)
        self._process = os.getpid()

    def __repr__(self) -> str:
        rest = f", {self.unlabelled:,} without a label" * bool(self.unlabelled)
        rest += f", {self.incomplete:,} with an incomplete label" * bool(self.incomplete)
        rest += f", {self.missing:,} without bytes" * bool(self.missing)
        return f"<{len(self):,} images of {self.slice} for {self.task}: {len(self.classes)} classes{rest}>"

    def __len__(self) -> int:
        return len(self._row_ids)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Several samples with one read, in the order of `indices`. torch's DataLoader calls it."""
        picked = np.arange(len(self))[np.asarray(indices, np.int64)]
        return [self.sample(int(i), data) for i, data in zip(picked, self.read(picked), strict=True)]

    def read(self, indices: np.ndarray) -> list[bytes]:
        """The files' bytes, in the order of `indices`."""
        return blobs.read(self._images(), self._row_ids[indices]) if len(indices) else []

    def sample(self, index: int, data: bytes) -> tuple[Any, Any]:
        """The sample `[index]`, from its file's bytes."""
        row = {name: self._rows[name][index].as_py() for name in ("black", "white")}
        picture = decode.pixels(decode.open_image(data), levels=blobs.levels_in(row))
        target = self.target(index)
        return (
            picture if self.transform is None else self.transform(picture),
            target if self.target_transform is None else self.target_transform(target),
        )

    def target(self, index: int) -> Any:
        """The target of an image, before `target_transform`."""
        truth = self._truths[index]
        if truth is None or self.task is None:
            return None
        if truth.task == CLASSIFICATION:
            return self.class_to_idx[str(truth.label)]
        instances = truth.instances()
        corners = [(b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]) for b, _ in instances]
        names = [(m or b)["label"] or "" for b, m in instances]
        target = {
            "boxes": np.array(corners, np.float32).reshape(-1, 4),
            "labels": np.array([self.class_to_idx[n] for n in names], np.int64),
            "crowd_boxes": boxes.corners([box for box, _ in truth.crowds()]).astype(np.float32),
        }
        if self.task == SEGMENTATION:
            size = (self._rows["height"][index].as_py(), self._rows["width"][index].as_py())
            decoded = [masks.decode(m["counts"], m["height"], m["width"]) for _, m in instances if m is not None]
            target["masks"] = np.stack(decoded) if decoded else np.zeros((0, *size), bool)
        return target

    def table(self) -> pa.Table:
        """image_id, width, height, format, source; label, boxes and masks as in `labels`. One row per image."""
        from lake.storage import schema

        columns = self._rows.select(["image_id", "width", "height", "format", "source"])
        for name, kind in (("label", pa.string()), ("boxes", schema.BOXES), ("masks", schema.MASKS)):
            values = [None if t is None else getattr(t, name) for t in self._truths]
            columns = columns.append_column(name, pa.array(values, kind))
        return columns

    def _images(self) -> Any:
        """The table of images, opened in this process. Raises CouldNot in a forked process, where Lance hangs."""
        if self._process != os.getpid():
            raise CouldNot(
                'Lance does not work in a forked process: pass the DataLoader multiprocessing_context="forkserver"'
            )
        if self._opened is None:
            self._opened = Lake(self.uri, self.storage_options).dataset("images", self.version)
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = os.getpid()


def _task(truths: dict[str, dict[str, GroundTruth]], task: str | None) -> str | None:
    tasks = sorted({t for by_task in truths.values() for t in by_task})
    if task is None:
        if len(tasks) > 1:
            raise BadInput(f"the slice has labels for {' and '.join(tasks)}; choose with task=")
        return tasks[0] if tasks else None
    if task not in TASKS:
        raise BadInput(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
    if task not in tasks and not (task == DETECTION and SEGMENTATION in tasks):
        raise BadInput(
            f"no image of the slice has a label for {task}; there are labels for {', '.join(tasks) or 'none'}"
        )
    return task


def _of(truths: dict[str, GroundTruth], task: str | None) -> GroundTruth | None:
    if task == DETECTION and DETECTION not in truths:
        return truths.get(SEGMENTATION)
    return truths.get(task or "")


def _classes(truths: Sequence[GroundTruth | None]) -> list[str]:
    return sorted({name for t in truths if t is not None for name in t.classes()})
