"""ImageFolder: a folder a class. It says one class of each image and nothing else.

Labels are anybody's text: folders have quoted names, and the manifest of an export keeps which class a folder is.
"""

from __future__ import annotations

from collections.abc import Iterator

from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, Sample
from lake.formats.target import Part, Whole

UNLABELLED = "_unlabelled"


def folder_name(label: str) -> str:
    """The folder of a class, which is never that of the images without one."""
    return annotation.folder_name(label) if label != UNLABELLED else "%5Funlabelled"


def write(part: Part, samples: Iterator[Sample]) -> None:
    for sample in samples:
        truth = sample.truths.get(CLASSIFICATION)
        label = truth.label if truth else None
        folder = folder_name(label) if label else UNLABELLED
        part.file(f"{folder}/{sample.name}", sample.image.data)
        for task, said in sample.truths.items():
            part.leave_out(task, said.task != CLASSIFICATION)


def finish(whole: Whole) -> None:
    """Nothing is common to all parts."""


def folders(labels: list[str]) -> dict[str, str | None]:
    """Folder -> class, for the manifest."""
    return {folder_name(label): label for label in labels} | {UNLABELLED: None}
