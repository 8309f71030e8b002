"""What a repair set aside of a lake, table by table: the damaged files themselves, and a list of what was in them.

Everything lies in `<lake>/quarantine/<table>/`: manifests and files under their own names, and a list for each repair
that took rows, `NUMBER.json`. Nothing here is removed by maintenance. Erasing an image removes the files, because they
may hold it; the lists, which have ids only, stay.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lake import whole_file
from lake.storage.lance_files import quarantine


@dataclass
class AsideList:
    """What one repair took from a table. `rows`: how many rows are gone. `ids`: column -> values of the rows that are
    gone, where they are known. `columns`: columns that are null now in rows that stayed, and `nulled`, their number.
    `files`: path -> what was wrong. `filled`: rows that came back from a backup.
    """

    table: str
    at: str
    rows: int = 0
    ids: dict[str, list[str]] = field(default_factory=dict)
    nulled: int = 0
    columns: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    undeleted: int = 0
    filled: int = 0

    @property
    def missing(self) -> int:
        """Rows that are still gone."""
        return max(0, self.rows - self.filled)


def folder_of(lake_folder: Path, table: str) -> Path:
    return lake_folder / quarantine.FOLDER / table


def move(lake_folder: Path, table: str, path: str) -> None:
    """Moves a file of the table, relative to its folder, aside under the same name; nothing if it does not exist."""
    source = lake_folder / f"{table}.lance" / path
    target = folder_of(lake_folder, table) / path
    if not os.path.lexists(source):
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    number = 1
    while target.exists():  # the same file was damaged before, after it had come back
        target = target.with_name(f"{target.name}.{number}")
        number += 1
    os.rename(source, target)


def write(lake_folder: Path, aside: AsideList) -> Path:
    """Stores a new list; returns its file."""
    folder = folder_of(lake_folder, aside.table)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    number = 1
    while (folder / f"{number}.json").exists():
        number += 1
    path = folder / f"{number}.json"
    whole_file.replace(path, json.dumps(asdict(aside)))
    return path


def lists(lake_folder: Path) -> Iterator[tuple[Path, AsideList]]:
    """Every list with its file, by table and number."""
    for path in sorted((lake_folder / quarantine.FOLDER).glob("*/*.json")):
        try:
            yield path, AsideList(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):  # not one of ours
            continue


def update(path: Path, aside: AsideList) -> None:
    whole_file.replace(path, json.dumps(asdict(aside)))


def remove_files(lake_folder: Path) -> int:
    """Removes everything set aside but the lists; returns the number of files."""
    removed = 0
    root = lake_folder / quarantine.FOLDER
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_file() and not (path.suffix == ".json" and path.parent.parent == root):
            path.unlink()
            removed += 1
    for folder in sorted(root.glob("*/*")):
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
    return removed
