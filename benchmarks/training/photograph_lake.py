"""Makes a folder of photographs in two classes, and a lake of it with a slice `all`."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import data
from benchmarks.harness.rounds import Options


def make(options: Options, most: int) -> tuple[str, Path, int]:
    """The lake's URI, the folder, and the number of photographs, at most `most`. Raises DataAbsent."""
    from lake import open_lake, slices
    from lake.ingest import ingest

    files = data.files_under(data.photographs(data.folder(options.data), options.work, most))
    classes = options.work / "classes"
    for number, path in enumerate(files):
        folder = classes / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    lake = open_lake.create(str(options.work / "lake"))
    ingest.ingest(lake, classes)
    slices.create(lake, "all", where="true")
    return lake.uri, classes, len(files)
