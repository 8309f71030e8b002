"""ImageFolder: one folder per class, and no other labels.

A label may be any text, so folders have quoted names; an export's manifest maps each folder to its class.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from lake.formats import annotation, image_files, splits
from lake.formats.annotation import CLASSIFICATION, Annotations, ExportSample, GroundTruth
from lake.formats.export_files import ExportPart, WholeExport
from lake.formats.item import IMAGE_SUFFIXES, Item, printable
from lake.formats.paths import manifest

UNLABELLED = "_unlabelled"
# Names of folders that are no classes: parts of other layouts, and dates.
_NOT_A_CLASS = re.compile(
    r"images?|imgs?|jpegimages|pictures?|photos?|masks?|labels?|annotations?|segmentations?|ground_?truths?|gt|data"
    r"|\d{4}-\d\d(-\d\d)?|(19|20)\d{6}"
)


# Reading ---------------------------------------------------------------------------------------------------


def recognised(root: Path) -> bool:
    """Whether the folders in `root`, or in its folders of splits, are classes: `class/img.jpg`, `train/class/img.jpg`.

    They are if there are two or more, with no image above them and no folders in them, and if none has a name that is
    not a class, such as `images`, `train` or a date. Reads one entry of each.
    """
    roots = split_folders(root) or {root: None}
    folders = [folder for top in roots for folder in _class_folders(top)]
    if any(_holds_image(top) for top in roots if top == root) or not folders:
        return False
    if any(_NOT_A_CLASS.fullmatch(f.name.lower()) or splits.of_folder(f.name) for f in folders):
        return False
    return (len(folders) >= 2 or root not in roots) and not any(_begins_with_folder(f) for f in folders)


def split_folders(root: Path) -> dict[Path, str | None]:
    """The folders `train`, `val`, ... in `root` with their splits, if there are no others and one has class folders."""
    folders = _class_folders(root)
    named = {folder: splits.of_folder(folder.name) for folder in folders}
    if None in named.values() or _holds_image(root) or not any(_class_folders(folder) for folder in folders):
        return {}
    return named


def _class_folders(root: Path) -> list[Path]:
    with os.scandir(root) as entries:
        return sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))


def _holds_image(root: Path) -> bool:
    with os.scandir(root) as entries:
        return any(not e.is_dir() and os.path.splitext(e.name)[1].lower() in IMAGE_SUFFIXES for e in entries)


def _begins_with_folder(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        first = next((e for e in entries if not e.name.startswith(".")), None)
    return first is not None and first.is_dir()


def read(root: Path) -> Iterator[Item]:
    """The images of the class folders in `root`, or in its folders of splits; those of a split without a class, too."""
    classes = manifest(root).get("classes")
    for top, split in (split_folders(root) or {root: None}).items():
        for entry in sorted(top.iterdir()):
            if entry.is_dir() and not entry.name.startswith("."):
                label = printable(entry.name)
                name = classes.get(label, label) if isinstance(classes, dict) else label
                yield from images_under(entry, name, os.path.abspath(top), split)
            elif entry.is_dir():
                yield Item(printable(entry), passed_over=image_files.HIDDEN)
            elif not entry.name.startswith(image_files.EXPORT):
                item = image_files.of_file(entry)
                if item.path is not None and split is None:
                    item = Item(item.source, error="not in a class folder (layout imagefolder is class/image)")
                yield item if item.path is None else _labelled(item, None, None, split)
    if split_folders(root):
        for entry in sorted(root.iterdir()):
            if not entry.is_dir():
                yield image_files.of_file(entry)


def images_under(
    root: Path, label: str | None = None, source: str | None = None, split: str | None = None
) -> Iterator[Item]:
    """All files below a folder; its images are of the class `label`. `source`: the folder above, as labels name it."""
    for item in image_files.below(root):
        yield item if item.path is None else _labelled(item, label, source, split)


def unlabelled(root: Path) -> Iterator[Item]:
    """All files below a folder, without classes. A folder of a split says the split of its images."""
    folders = 0
    beside: Counter[str] = Counter()
    for folder, items in groupby(image_files.below(root), lambda item: os.path.dirname(item.source)):
        stems: dict[str, set[str]] = {}
        names = Path(folder).relative_to(printable(root)).parts if folder.startswith(printable(root)) else ()
        split = next((s for name in reversed(names) if (s := splits.of_folder(name)) is not None), None)
        for item in items:
            stem, suffix = os.path.splitext(item.source)
            if item.path is not None:
                stems.setdefault("", set()).add(stem)
            elif item.passed_over is not None and suffix.lower() in _LABEL_SUFFIXES:
                stems.setdefault(suffix.lower(), set()).add(stem)
            yield item if item.path is None else _labelled(item, None, None, split)
        images = stems.pop("", set())
        folders += bool(images and names)
        beside.update({suffix: len(images & of_suffix) for suffix, of_suffix in stems.items() if images & of_suffix})
    if folders > 1:
        yield Item(printable(root), note=f"the names of {folders:,} folders were not read as classes; {_CLASSES}")
    for suffix, count in beside.items():
        reason = (
            f"{count:,} {suffix} files are named as images beside them; they were not read: it is no layout we know"
        )
        yield Item(printable(root), note=reason)


_CLASSES = "if they are classes, ingest the folder right above them with --layout imagefolder"
_LABEL_SUFFIXES = (".txt", ".xml", ".json", ".csv")


def _labelled(item: Item, label: str | None, source: str | None, split: str | None) -> Item:
    if label is None and split is None:
        return item
    return replace(item, read_annotations=partial(of_class, label, source, split))


def of_class(label: str | None, source: str | None, split: str | None, width: int, height: int) -> Annotations:
    """The annotations of an image of one class. With the first three arguments it is an `AnnotationReader`."""
    truths = [] if label is None else [GroundTruth(CLASSIFICATION, label)]
    metadata = {} if split is None else {"split": split}
    return Annotations(truths, metadata=metadata, annotator="imagefolder", source=source)


# Writing ---------------------------------------------------------------------------------------------------


def folder_name(label: str) -> str:
    """The name of a class's folder; it differs from the folder of unlabelled images."""
    return annotation.folder_name(label) if label != UNLABELLED else "%5Funlabelled"


def write(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    for sample in samples:
        part.file(path_of(sample), sample.image.data)
        leave_out(part, sample)


def path_of(sample: ExportSample) -> str:
    """The image's file: in the folder of its class."""
    truth = sample.ground_truths.get(CLASSIFICATION)
    label = truth.label if truth else None
    return f"{folder_name(label) if label else UNLABELLED}/{sample.name}"


def leave_out(part: ExportPart, sample: ExportSample) -> None:
    """Counts the labels that the format has no place for."""
    for task in sample.ground_truths:
        part.leave_out(task, task != CLASSIFICATION)


def finish(whole: WholeExport) -> None:
    """There is no file beyond the parts' own."""


def folders(labels: list[str]) -> dict[str, str | None]:
    """Folder -> class, for the manifest of an export."""
    return {folder_name(label): label for label in labels} | {UNLABELLED: None}
