"""Splits of a data set (train, val, test) that names of folders and documents say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from lake.formats.paths import manifest

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing", "dev")


def of_folder(name: str) -> str | None:
    """The split that a folder's whole name says, in its own word: "train", "valid", "train" of "train2017"."""
    word = re.sub(r"\d+$", "", name.lower())
    return word if word in SPLITS else None


def of_document(name: str) -> str | None:
    """The split that is one of the words of a document's name: "train" of "instances_train2017"; None if unclear."""
    words = {of_folder(word) for word in re.split(r"[^A-Za-z0-9]+", name)} - {None}
    return words.pop() if len(words) == 1 else None


def of_path(root: Path, file: Path) -> str | None:
    """The split of a document or shard of a data set in `root`: its own name's, or else that of the folder nearest.

    None in our own exports, whose folders are not splits.
    """
    if manifest(root):
        return None
    folders: Iterable[str] = reversed(file.relative_to(root).parts[:-1]) if file.is_relative_to(root) else ()
    named = [of_document(file.name.partition(".")[0]), *map(of_folder, folders)]
    return next((split for split in named if split is not None), None)
