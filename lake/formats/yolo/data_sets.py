"""YOLO data sets on disk: their YAML, names of classes, splits and tasks, and the folders of their images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from lake.formats.item import IMAGE_SUFFIXES, ReadOptions
from lake.formats.numbers import whole
from lake.formats.paths import inside, manifest, text
from lake.prediction_logs.table_rows import json_lines

SPLITS = ("train", "val", "test")
DETECT, SEGMENT, POSE, OBB = "detect", "segment", "pose", "obb"
# Text files looked at to tell whether those beside images are labels.
_LOOKED_AT = 20


@dataclass(frozen=True)
class YoloDataSet:
    """A data set in `root`; paths in its YAML are relative to `base`. `task`: None if the YAML does not say.

    `keypoint_numbers`: numbers for the keypoints of an instance of a pose data set. `entries`: a split, or None, and a
    folder or list of images as the YAML names it. `split`: of the whole data set; `folder_splits`: whether the names of
    folders say the split of an image.
    """

    root: Path
    base: Path
    names: Mapping[int, str]
    options: ReadOptions
    task: str | None = None
    keypoint_numbers: int | None = None
    entries: Sequence[tuple[str | None, Any]] = ()
    split: str | None = None
    folder_splits: bool = False
    predictions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def description(path: Path) -> Path | None:
    """The data set's YAML file: `path` itself, or the one in this folder that has `names`."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    for candidate in (path / "data.yaml", path / "dataset.yaml"):
        if candidate.is_file() and "names" in yaml_content(candidate):
            return candidate
    return next((candidate for candidate in sorted(path.glob("*.y*ml")) if _has_names(candidate)), None)


def _has_names(candidate: Path) -> bool:
    try:
        return candidate.is_file() and "names" in yaml_content(candidate)
    except BadInput:  # a YAML of something else
        return False


def recognised(path: Path) -> bool:
    """Whether a folder has a YOLO data set."""
    return bool(roots(path))


def roots(path: Path) -> list[Path]:
    """The folders of the data sets at a path: itself, or else those in it.

    A data set has the YAML, or folders `images` and `labels`, also in the folders of its splits, or its label files lie
    beside the images.
    """
    if path.is_file() or _is_root(path):
        return [path]
    below = [folder for folder in sorted(path.glob("*/")) if not folder.name.startswith(".")]
    described = [folder for folder in below if description(folder) is not None or (folder / "classes.txt").is_file()]
    if described and all(map(_is_labelled, described)):
        return described
    paired = any(_has_folders(folder) for folder in below)
    return [path] if paired or any(map(labels_beside_images, (path, *below))) else []


def _is_labelled(folder: Path) -> bool:
    return _is_root(folder) or labels_beside_images(folder)


def _is_root(path: Path) -> bool:
    return description(path) is not None or _has_folders(path)


def _has_folders(path: Path) -> bool:
    return (path / "images").is_dir() and (path / "labels").is_dir()


def labels_beside_images(folder: Path) -> bool:
    """Whether text files in a folder are named as its images and hold lines of YOLO."""
    names = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    stems = {os.path.splitext(name)[0] for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES}
    beside = sorted(name for name in names if name.endswith(".txt") and name[:-4] in stems)
    return any(_begins_as_label(folder / name) for name in beside[:_LOOKED_AT])


def _begins_as_label(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            words = next((line.split() for line in lines if line.strip()), [])
        values = [float(word) for word in words]
    except (OSError, ValueError):
        return False
    return len(values) >= 5 and values[0] >= 0 and values[0] == int(values[0])


def read_description(path: Path, options: ReadOptions, split: str | None = None) -> YoloDataSet:
    """The data set at a path, one of `roots`. Raises BadInput if its YAML is broken."""
    file = description(path)
    if path.is_file() and file is None:
        raise BadInput(f"{path} is not the data.yaml of a YOLO data set")
    root = path if path.is_dir() else path.parent
    content = {} if file is None else yaml_content(file)
    base = root
    # `path` is where the archive was unpacked; an absolute one is that of another machine.
    if isinstance(content.get("path"), str) and not os.path.isabs(content["path"]):
        try:
            base = inside(root, content["path"]) if inside(root, content["path"]).is_dir() else root
        except BadInput:
            base = root
    task, entries = content.get("task"), _entries(content, root)
    keypoints = _keypoint_numbers(content.get("kpt_shape"))
    headers = {}
    if (root / "predictions.jsonl").is_file():
        rows = [row for _, row in json_lines(root / "predictions.jsonl") if isinstance(row, dict)]
        headers = {str(row.pop("image", "")): row for row in rows}
    return YoloDataSet(
        root,
        base,
        class_names(content.get("names"), root),
        options,
        POSE if keypoints is not None else task if task in (DETECT, SEGMENT, POSE, OBB) else None,
        keypoints,
        entries or [(None, "images" if (root / "images").is_dir() and not any(root.glob("*/images")) else ".")],
        split,
        not entries and not manifest(root),
        headers,
    )


def _keypoint_numbers(shape: Any) -> int | None:
    if shape is None:
        return None
    sides = [whole(side) for side in shape] if isinstance(shape, list) else []
    if len(sides) != 2 or sides[1] not in (2, 3) or sides[0] is None or sides[0] < 1:
        raise BadInput(f"kpt_shape is {shape!r:.60}, not [number of keypoints, 2 or 3]")
    return sides[0] * sides[1]


def _entries(content: Mapping[str, Any], root: Path) -> list[tuple[str | None, Any]]:
    """The folders and lists of images, each with its split: none in an export, or where two splits name it."""
    named = [(split, entry) for split in SPLITS for entry in _listed(content.get(split))]
    splits_of: dict[str, set[str]] = {}
    for split, entry in named:
        splits_of.setdefault(str(entry), set()).add(split)
    unclear = bool(manifest(root))
    return [(None if unclear or len(splits_of[str(entry)]) > 1 else split, entry) for split, entry in named]


def _listed(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, list) else () if value is None else (value,)


def yaml_content(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file, empty if it has another value. Raises BadInput if it is broken or has aliases."""
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


def class_names(names: Any, root: Path) -> Mapping[int, str]:
    """Number to name: from the YAML's `names`, or else from `classes.txt`; empty if there is neither."""
    if isinstance(names, dict):
        numbered = {whole(k): "" if v is None else str(v) for k, v in names.items()}
        return {k: v for k, v in numbered.items() if k is not None}
    if isinstance(names, list):
        return {i: "" if v is None else str(v) for i, v in enumerate(names)}
    if names is not None:
        raise BadInput(f"names is {names!r:.60}, not a list of classes or a mapping of numbers to classes")
    for file in (root / "classes.txt", root / "labels" / "classes.txt", root / "obj.names"):
        if file.is_file():
            return dict(enumerate(text(file).splitlines()))
    return {}
