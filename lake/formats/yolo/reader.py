"""Reads YOLO: `data.yaml`, `images/`, and for each image a text file in `labels/` with one line per instance.

A line is `class x y width height [score]` (the centre, as fractions of the image's size) or `class x1 y1 x2 y2 ...
[score]`, a polygon. In a pose data set (`kpt_shape`) keypoints follow the box; in an OBB data set four points are a
turned box. An empty file means no instances; no file means not labelled. The text files may lie beside the images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from lake.formats import image_files, splits
from lake.formats.annotation import DETECTION, SEGMENTATION, Annotations, GroundTruth
from lake.formats.instances import Instances
from lake.formats.item import Item, ReadOptions, printable
from lake.formats.paths import inside, text
from lake.formats.yolo.data_sets import OBB, POSE, SEGMENT, YoloDataSet, read_description, roots
from lake.formats.yolo.lines import LineForm, read_line

# Label files beside the images, and what tools keep with them.
_OTHERS = {".txt", ".cache", ".yaml", ".yml", ".names", ".jsonl"}
# Label files that are looked at to tell turned boxes from polygons of four points.
_LOOKED_AT = 1_000


def read(path: Path, options: ReadOptions) -> Iterator[Item]:
    """The images of the data sets at `path`, with their annotations. Raises BadInput if there is none."""
    for root in roots(path) or [path]:
        split = None if root == path else splits.of_folder(root.name)
        yield from _DataSetReader(read_description(root, options, split)).items()


class _DataSetReader:
    def __init__(self, data: YoloDataSet) -> None:
        self._data = data

    def items(self) -> Iterator[Item]:
        seen: set[Path] = set()
        for split, entry in self._data.entries:
            for item in self._images(split, entry):
                if item.path is None or item.path not in seen:
                    yield item
                if item.path is not None:
                    seen.add(item.path)
        yield from self._labels_without_image(seen)

    def _images(self, split: str | None, entry: Any) -> Iterator[Item]:
        # Exporters write ../train/images but mean train/images.
        relative = entry[3:] if isinstance(entry, str) and entry.startswith("../") else entry
        base = self._data.base
        try:
            path = inside(base, relative)
        except BadInput as error:
            yield Item(printable(f"{base}: {entry}"), error=str(error))
            return
        if path.is_file() and path.suffix == ".txt":
            for line in text(path).splitlines():
                if line.strip():
                    try:
                        yield self._item(split, inside(base, line.strip().removeprefix("./")))
                    except BadInput as error:
                        yield Item(printable(f"{path}: {line}"), error=str(error))
        elif path.is_dir():
            for item in image_files.below(path, _OTHERS):
                yield item if item.path is None else self._item(split, item.path)
        else:
            yield Item(printable(path), error="the data set's YAML names it, but it does not exist")

    def _item(self, split: str | None, path: Path) -> Item:
        root = self._data.root
        try:
            relative = path.relative_to(root)
            inside(root, str(relative))
        except BadInput as error:
            return Item(printable(path), error=str(error))
        split = split or self._data.split
        if split is None and self._data.folder_splits:
            split = next((s for f in reversed(relative.parts[:-1]) if (s := splits.of_folder(f))), None)
        return Item(printable(path), path=path, read_annotations=partial(self._annotations, split, path))

    def _labels_without_image(self, seen: set[Path]) -> Iterator[Item]:
        named = {path.with_suffix("") for path in map(label_file, seen)}
        for folder in sorted({path.parent for path in named}):
            if "labels" in folder.relative_to(self._data.root).parts and folder.is_dir():
                for file in sorted(folder.glob("*.txt")):
                    if file.with_suffix("") not in named and file.name != "classes.txt":
                        yield Item(printable(file), error="the data set has no image with this name")

    @cached_property
    def _form(self) -> LineForm:
        data = self._data
        if data.task == POSE and data.keypoint_numbers is None:
            raise BadInput("the data set's YAML says task: pose, but no kpt_shape: lines are read with it only")
        turned = data.task == OBB or (data.task is None and self._all_lines_have_eight_numbers())
        return LineForm(data.names, turned, data.keypoint_numbers)

    def _all_lines_have_eight_numbers(self) -> bool:
        """Of the first label files with lines; it stops at the first other line."""
        looked_at = 0
        for _, entry in self._data.entries:
            for item in self._images(None, entry):
                file = label_file(item.path) if item.path is not None else None
                if file is None or not file.is_file():
                    continue
                try:
                    lines = [line.split() for line in text(file).splitlines() if line.strip()]
                except BadInput:
                    continue
                if any(len(words) != 9 for words in lines):
                    return False
                looked_at += bool(lines)
                if looked_at >= _LOOKED_AT:
                    return True
        return looked_at > 0

    def _annotations(self, split: str | None, path: Path, width: int, height: int) -> Annotations:
        data = self._data
        annotations = Annotations(annotator="yolo", source=os.path.abspath(data.root))
        if split is not None:
            annotations.metadata["split"] = split
        truths = self._truths(label_file(path), annotations, width, height)
        model = data.options.model
        if model.name is None:
            annotations.ground_truths += truths
        elif annotations.incomplete:
            annotations.rejected.append((printable(path), PART_REFUSED))
        else:
            header = {"model": model.name, "model_version": model.version}
            annotations.predictions += [_prediction(header, truth) for truth in _whole(truths)[-1:]]
        logged = data.predictions.get(path.name)
        if logged is not None:
            self._add_prediction(logged, _beside(path, "predictions"), annotations, width, height)
        return annotations

    def _add_prediction(
        self, header: Mapping[str, Any], file: Path, annotations: Annotations, width: int, height: int
    ) -> None:
        said = Annotations()
        truths = self._truths(file, said, width, height)
        annotations.rejected += said.rejected
        annotations.converted += said.converted
        if said.incomplete:
            annotations.rejected.append((printable(file), PART_REFUSED))
        else:
            whole = _whole(truths)
            annotations.predictions.append(_prediction(header, whole[-1]) if whole else dict(header))

    def _truths(self, file: Path, annotations: Annotations, width: int, height: int) -> list[GroundTruth]:
        """What a label file says; [] if there is none. Adds what was rejected to `annotations`."""
        if not os.path.lexists(file):
            return []
        instances = Instances(height, width)
        tasks = {SEGMENT: [SEGMENTATION], OBB: [DETECTION, SEGMENTATION]}.get(self._data.task or "", [DETECTION])
        try:
            inside(self._data.root, str(file.relative_to(self._data.root)))
            lines = text(file).splitlines()
            form = self._form if any(map(str.strip, lines)) else LineForm({})
        except BadInput as error:
            annotations.rejected.append((printable(file), str(error)))
            annotations.incomplete.update(tasks)
            return []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = printable(f"{file}:{number}")
            try:
                found = read_line(form, line.split(), width, height)
            except BadInput as error:
                annotations.rejected.append((where, str(error)))
                instances.refused.update(tasks)
            else:
                instances.found.append(found.region)
                annotations.converted += [(where, sentence) for sentence in found.converted]
        said = Annotations()
        instances.state(said, tasks)
        annotations.incomplete |= said.incomplete
        if form.turned and instances.found:
            boxes = GroundTruth(DETECTION, boxes=[box for box, _ in instances.found])
            said.ground_truths = [boxes, *(t for t in said.ground_truths if t.task == SEGMENTATION)]
            annotations.incomplete |= {DETECTION} if instances.refused else set()
        return said.ground_truths


PART_REFUSED = "the model's prediction is left out, since a part of it was refused"


def _whole(truths: list[GroundTruth]) -> list[GroundTruth]:
    """Without a segmentation some of whose instances have no mask."""
    return [truth for truth in truths if not truth.incomplete]


def _prediction(header: Mapping[str, Any], truth: GroundTruth) -> dict[str, Any]:
    return {**header, "boxes": truth.boxes, "masks": truth.masks}


def label_file(image: Path) -> Path:
    """The text file of an image: in `labels` where its path has `images`, or else beside it."""
    paired = _beside(image, "labels")
    beside = image.with_suffix(".txt")
    return beside if paired != beside and not os.path.lexists(paired) and os.path.lexists(beside) else paired


def _beside(path: Path, folder: str) -> Path:
    """The text file for which `images` in an image's path is replaced by `folder`; else it is beside the image."""
    parts = list(path.with_suffix(".txt").parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = folder
            break
    return Path(*parts)
