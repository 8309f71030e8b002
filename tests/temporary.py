"""Where the tests write, and copies of folders that are written again and again.

A lake is hundreds of small files in a hundred folders. To copy one takes 70 ms of a processor on a disk's file system,
16 ms in memory, and 3 ms if its bytes are at hand.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

MEMORY_DISK = Path("/dev/shm")
# A whole run leaves less than 2 GiB when each test's folder is deleted after it.
NEEDED_BYTES = 6 << 30


def use_memory() -> None:
    """Temporary files of this process and its children lie in memory, if there is enough. TMPDIR decides if it is set.

    The tests of kills stay on `disk()`: between a write and its sync is their moment.
    """
    if "TMPDIR" in os.environ or not os.access(MEMORY_DISK, os.W_OK):
        return
    if min(shutil.disk_usage(MEMORY_DISK).free, psutil.virtual_memory().available) >= NEEDED_BYTES:
        os.environ["LAKELOOP_TEST_DISK"] = tempfile.gettempdir()
        os.environ["TMPDIR"] = str(MEMORY_DISK)
        tempfile.tempdir = None


def disk() -> str:
    """The folder for temporary files on a disk."""
    return os.environ.get("LAKELOOP_TEST_DISK", tempfile.gettempdir())


class Template:
    """A folder's files, in memory."""

    def __init__(self, folder: Path) -> None:
        paths = sorted(folder.rglob("*"))
        self._folders = [str(path.relative_to(folder)) for path in paths if path.is_dir()]
        self._files = [(str(path.relative_to(folder)), path.read_bytes()) for path in paths if path.is_file()]

    def write(self, folder: Path) -> Path:
        """Makes the folder, which must not be there, with all its files; returns it."""
        folder.mkdir(parents=True)
        for name in self._folders:
            os.mkdir(f"{folder}/{name}")
        for name, data in self._files:
            with open(f"{folder}/{name}", "xb", buffering=0) as file:
                file.write(data)
        return folder
