"""Reads YOLO: `data.yaml`, `images/`, and for each image a text file in `labels/` with one line per instance.

A line is `class x y width height [score]` (the centre, as fractions of the image's size) or `class x1 y1 x2 y2 ...
[score]`, a polygon. A data set has boxes or polygons, not both. An empty file means no instances; no file means not
labelled.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.annotation import (
    DETECTION,
    SEGMENTATION,
    Annotations,
    GroundTruth,
    ModelName,
)
from lake.formats.item import IMAGE_SUFFIXES, Item, printable
from lake.formats.paths import inside, text
from lake.prediction_logs.table_rows import json_lines
from lake.regions import polygons

SPLITS = ("train", "val", "test")
# How far beyond the image's edge the most used reader accepts coordinates.
_OVER = 1.01


@dataclass(frozen=True)
class _DataSet:
    root: Path
    names: Mapping[int, str]
    model: ModelName
    task: str = DETECTION
    predictions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def description(path: Path) -> Path | None:
    """The data set's YAML file: `path` itself, or the one in this folder that has `names`."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    for candidate in (path / "data.yaml", path / "dataset.yaml", *sorted(path.glob("*.y*ml"))):
        if candidate.is_file() and "names" in _yaml(candidate):
            return candidate
    return None


def recognised(path: Path) -> bool:
    """Whether a folder is a YOLO data set: it has the YAML, or `images/` and `labels/`."""
    return description(path) is not None or ((path / "images").is_dir() and (path / "labels").is_dir())


def read(path: Path, model: ModelName) -> Iterator[Item]:
    yaml_file = description(path)
    if path.is_file() and yaml_file is None:
        raise BadInput(f"{path} is not the data.yaml of a YOLO data set")
    root = path if path.is_dir() else path.parent
    content = {} if yaml_file is None else _yaml(yaml_file)
    names = _names(content.get("names"), root)
    task = SEGMENTATION if content.get("task") == "segment" else DETECTION
    headers = {}
    if (root / "predictions.jsonl").is_file():
        rows = [row for _, row in json_lines(root / "predictions.jsonl") if isinstance(row, dict)]
        headers = {str(row.pop("image", "")): row for row in rows}
    data = _DataSet(root, names, model, task, headers)
    # `path` is where the archive was unpacked; an absolute one is that of another machine.
    base = root
    if isinstance(content.get("path"), str) and not os.path.isabs(content["path"]):
        try:
            base = inside(root, content["path"]) if inside(root, content["path"]).is_dir() else root
        except BadInput:
            base = root
    entries: list[Any] = [p for split in SPLITS for p in _listed(content.get(split))]
    if not entries:
        entries = ["images" if (root / "images").is_dir() else "."]
    seen: set[Path] = set()
    for entry in entries:
        for item in _images(data, base, entry):
            if item.path is None or item.path not in seen:
                yield item
            if item.path is not None:
                seen.add(item.path)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # a few hundred bytes of them can mean gigabytes
                raise yaml.YAMLError("it has an alias (*name), which no data set needs: write the value out")
            return super().compose_node(parent, index)

    try:
        content = yaml.load(text(path, 1 << 20), Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadInput(f"{path} is broken YAML: {' '.join(str(error).split())[:200]}") from error
    return content if isinstance(content, dict) else {}


def _names(names: Any, root: Path) -> Mapping[int, str]:
    if isinstance(names, dict):
        return {k: "" if v is None else str(v) for k, v in names.items() if isinstance(k, int)}
    if isinstance(names, list):
        return {i: "" if v is None else str(v) for i, v in enumerate(names)}
    if (root / "classes.txt").is_file():
        return dict(enumerate(text(root / "classes.txt").splitlines()))
    return {}


def _images(data: _DataSet, base: Path, entry: Any) -> Iterator[Item]:
    # Exporters write ../train/images but mean train/images.
    relative = entry[3:] if isinstance(entry, str) and entry.startswith("../") else entry
    try:
        path = inside(base, relative)
    except BadInput as error:
        yield Item(printable(f"{base}: {entry}"), error=str(error))
        return
    if path.is_file() and path.suffix == ".txt":
        for line in text(path).splitlines():
            if line.strip():
                try:
                    yield _item(data, inside(base, line.strip().removeprefix("./")))
                except BadInput as error:
                    yield Item(printable(f"{path}: {line}"), error=str(error))
    elif path.is_dir():
        for folder, folders, files in os.walk(path):
            folders.sort()
            for name in sorted(files):
                if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    yield _item(data, Path(folder, name))
    else:
        yield Item(printable(path), error="the data set's YAML names it, but it does not exist")


def _item(data: _DataSet, path: Path) -> Item:
    try:
        inside(data.root, str(path.relative_to(data.root)))
    except BadInput as error:
        return Item(printable(path), error=str(error))
    return Item(printable(path), path=path, read_annotations=partial(_annotations, data, path))


def _beside(path: Path, folder: str) -> Path:
    """The text file of an image: `images` in its path is replaced by `folder`; else it is beside the image."""
    parts = list(path.with_suffix(".txt").parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = folder
            break
    return Path(*parts)


def _annotations(data: _DataSet, path: Path, width: int, height: int) -> Annotations:
    annotations = Annotations(annotator="yolo")
    truth = _truth(data, _beside(path, "labels"), annotations, width, height)
    if data.model.name is None:
        annotations.ground_truths += truth
    else:
        annotations.predictions += [
            _prediction({"model": data.model.name, "model_version": data.model.version}, t) for t in truth
        ]
    header = data.predictions.get(path.name)
    predictions_file = _beside(path, "predictions")
    if header is not None:
        truths = _truth(data, predictions_file, annotations, width, height)
        annotations.predictions.append(_prediction(header, truths[0]) if truths else dict(header))
    return annotations


def _prediction(header: Mapping[str, Any], truth: GroundTruth) -> dict[str, Any]:
    return {**header, "boxes": truth.boxes, "masks": truth.masks}


def _truth(data: _DataSet, file: Path, annotations: Annotations, width: int, height: int) -> list[GroundTruth]:
    if not os.path.lexists(file):
        return []
    instances = []
    try:
        inside(data.root, str(file.relative_to(data.root)))
        lines = text(file).splitlines()
    except BadInput as error:
        annotations.rejected.append((printable(file), str(error)))
        return []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                instances.append(_instance(data.names, line.split(), width, height))
            except BadInput as error:
                annotations.rejected.append((printable(f"{file}:{number}"), str(error)))
    boxes = [i for i in instances if "counts" not in i]
    mask_instances = [i for i in instances if "counts" in i]
    truths = []
    if boxes or (not mask_instances and data.task == DETECTION):
        truths.append(GroundTruth(DETECTION, boxes=boxes))
    if mask_instances or (not boxes and data.task == SEGMENTATION):
        truths.append(GroundTruth(SEGMENTATION, masks=mask_instances))
    return truths


def _instance(names: Mapping[int, str], words: list[str], width: int, height: int) -> dict[str, Any]:
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        raise BadInput("the line has something that is not a number") from error
    if not all(map(math.isfinite, values)) or values[0] != int(values[0]) or values[0] < 0:
        raise BadInput("the line must begin with a class number")
    number, rest = int(values[0]), values[1:]
    if names and number not in names:
        raise BadInput(f"class {number} has no name in the data set's YAML")
    label = names.get(number, str(number))
    score = rest.pop() if len(rest) == 5 or (len(rest) > 6 and len(rest) % 2) else None
    if any(not 0.0 <= v <= _OVER for v in rest):
        raise BadInput("a coordinate is not between 0 and 1: YOLO's are fractions of the image's size")
    if len(rest) == 4:
        x, y, w, h = rest[0] * width, rest[1] * height, rest[2] * width, rest[3] * height
        return annotation.box(label, (x - w / 2, y - h / 2, w, h), score)
    if len(rest) < 6:
        raise BadInput(f"{len(rest)} numbers after the class; a box has 4, a polygon 6 or more")
    points = [v * (height if i % 2 else width) for i, v in enumerate(rest)]
    return annotation.mask(label, polygons.fill([points], height, width), height, width, score)
