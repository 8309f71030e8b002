"""Reads data files in a process of its own: what a damaged file does to its reader must not happen to the lake's.

Run as `python -m lake.storage.lance_files.reading`: it takes one JSON object on stdin and prints a line for each file.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

# A damaged length must not take all of the machine's memory.
MOST_MEMORY = 8 << 30
# The longest that reading one file may take; a fragment has at most 256 MB.
SECONDS = 120.0


@dataclass(frozen=True)
class FileToRead:
    """A data file as a version of a table names it: `table` is the table's folder, `path` relative to it."""

    table: str
    version: int
    path: str
    fragment: int
    columns: list[str]


def unreadable(files: Sequence[FileToRead]) -> list[str | None]:
    """Why each of the files cannot be read; None for one that can. Blobs are not read."""
    reasons: list[str | None] = []
    while len(reasons) < len(files):
        reasons += _read(files[len(reasons) :])
        if len(reasons) < len(files):  # the process ended at the next file
            reasons.append("reading it ends the process that reads")
    return reasons


def _read(files: Sequence[FileToRead]) -> list[str | None]:
    """What a process says of the files, in their order, until it ends."""
    request = json.dumps([asdict(file) for file in files])
    command = [sys.executable, "-m", __name__]
    try:
        ended = subprocess.run(command, input=request, capture_output=True, text=True, timeout=SECONDS * len(files))
        output = ended.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    return [json.loads(line)["reason"] for line in output.splitlines() if line.endswith("}")]


def _main() -> None:
    import lance

    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    for file in json.load(sys.stdin):
        reason = None
        try:
            dataset = lance.dataset(file["table"], version=file["version"])
            fragment = dataset.get_fragment(file["fragment"])
            rows = sum(batch.num_rows for batch in fragment.scanner(columns=file["columns"]).to_batches())
            stored = fragment.metadata.physical_rows - fragment.metadata.num_deletions
            if rows != stored:
                reason = f"it has {rows} rows, the table's manifest says {stored}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # Lance's panics are no Exception
            reason = " ".join(str(error).split(", /")[0].split())[:200] or type(error).__name__
        sys.stdout.write(json.dumps({"reason": reason}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
