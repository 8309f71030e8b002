"""ImageFolder: one folder per class, and no other labels.

A label may be any text, so folders have quoted names; an export's manifest maps each folder to its class.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, Annotations, ExportSample, GroundTruth
from lake.formats.export_files import ExportPart, WholeExport
from lake.formats.item import FOREIGN_SUFFIXES, IMAGE_SUFFIXES, Item, printable
from lake.formats.paths import manifest

UNLABELLED = "_unlabelled"


# Reading ---------------------------------------------------------------------------------------------------


def recognised(root: Path) -> bool:
    """Whether there are two or more subfolders and no image above them: `class/img.jpg`. Reads one entry of each."""
    folders = 0
    with os.scandir(root) as entries:
        listed = list(entries)
    for entry in listed:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            with os.scandir(entry.path) as inside:
                first = next((e for e in inside if not e.name.startswith(".")), None)
            if first is not None and first.is_dir():
                return False
            folders += 1
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            return False
    return folders >= 2


def read(root: Path) -> Iterator[Item]:
    classes = manifest(root).get("classes")
    with os.scandir(root) as entries:
        listed = sorted(entries, key=lambda e: e.name)
    for entry in listed:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            label = printable(entry.name)
            yield from images_under(Path(entry.path), classes.get(label, label) if isinstance(classes, dict) else label)
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            yield Item(printable(entry.path), error="not in a class folder (layout imagefolder is class/image)")


def images_under(root: Path, label: str | None = None) -> Iterator[Item]:
    seen: set[tuple[int, int]] = set()
    unreadable: list[OSError] = []
    for folder, subfolders, files in os.walk(root, onerror=unreadable.append, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            path = Path(folder, name)
            if suffix in IMAGE_SUFFIXES:
                reader = None if label is None else partial(of_class, label)
                yield Item(printable(path), path=path, read_annotations=reader)
            elif suffix in FOREIGN_SUFFIXES:
                yield Item(printable(path), error=f"{suffix} images are not supported; convert them to JPEG or PNG")
    for error in unreadable:
        yield Item(printable(error.filename), error=error.strerror or str(error))


def of_class(label: str, width: int, height: int) -> Annotations:
    """The annotations of an image of one class. `partial(of_class, label)` is an `AnnotationReader`."""
    return Annotations([GroundTruth(CLASSIFICATION, label)], annotator="imagefolder")


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
