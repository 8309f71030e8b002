"""Which images a process embeds just now, so that several processes on one lake share the work.

Claims are rows of a small SQLite file beside the tables. A process holds a lock on a file of its own for as long as it
lives; the system releases it when the process dies, however it dies, and its claims then count for nothing. A lake on
object storage has no such files: there every process may embed everything.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lake.storage.store import Lake

FOLDER = "embedding"
# Seconds to wait for another process's transaction, of a few milliseconds.
_PATIENCE = 60.0
_TABLE = """CREATE TABLE IF NOT EXISTS claims (
    column_name TEXT, image INTEGER, owner TEXT, done INTEGER, PRIMARY KEY (column_name, image)) WITHOUT ROWID"""


class Claims:
    """The claims of one process on images that lack a vector in one column. For one thread."""

    def __init__(self, lake: Lake, column: str) -> None:
        self._column, self._owner = column, uuid.uuid4().hex
        self._folder = None if lake.folder is None else lake.folder / FOLDER
        self._lock = -1
        if self._folder is None:
            return
        self._folder.mkdir(exist_ok=True)
        new = self._folder / f"{self._owner}.new"
        self._lock = os.open(new, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(self._path(self._owner))  # no process may see it without its lock, and take its owner for dead
        self._database = sqlite3.connect(
            self._folder / "claims.sqlite", timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        self._database.execute("PRAGMA synchronous = OFF")  # after a power loss nobody holds a claim
        with self._transaction():
            self._database.execute(_TABLE)

    def close(self) -> None:
        """Gives up the claims that are not done."""
        if self._lock < 0 or self._folder is None:
            return
        with self._transaction():
            self._delete("owner = ? AND done = 0", self._owner)
        self._database.close()
        self._path(self._owner).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1

    def moment(self) -> int:
        """A number for now. Ask for it before you look which images lack a vector: see `take`."""
        if self._folder is None:
            return 0
        query = "SELECT max(done) FROM claims WHERE column_name = ?"
        return int(self._database.execute(query, [self._column]).fetchone()[0] or 0)

    def take(self, image_ids: Sequence[str], since: int) -> tuple[list[str], list[str]]:
        """Claims those of the images that nobody has; returns them, and those that another process embeds just now.

        Images that are done since the moment `since` are in neither list: the caller's look does not know it yet.
        """
        if self._folder is None:
            return list(image_ids), []
        with self._transaction():
            alone = self._forget_the_dead()
            if alone:
                self._delete("owner != ?", self._owner)
            state = self._states({_number(image_id) for image_id in image_ids})
            free, busy = [], []
            for image_id in image_ids:
                owner, done = state.get(_number(image_id), ("", 0))
                if not owner or 0 < done <= since or (owner == self._owner and not done):
                    free.append(image_id)
                elif not done:
                    busy.append(image_id)
            rows = [(self._column, _number(image_id), self._owner) for image_id in free]
            self._database.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, 0)", rows)
        return free, busy

    def finish(self, image_ids: Sequence[str]) -> None:
        """The images have their vectors, or their failures, in the lake now."""
        if self._folder is None or not image_ids:
            return
        with self._transaction():
            moment = self.moment() + 1
            rows = [(moment, self._column, _number(image_id), self._owner) for image_id in image_ids]
            statement = "UPDATE claims SET done = ? WHERE column_name = ? AND image = ? AND owner = ?"
            self._database.executemany(statement, rows)

    def _states(self, numbers: set[int]) -> dict[int, tuple[str, int]]:
        query = "SELECT image, owner, done FROM claims WHERE column_name = ? AND image = ?"
        rows = [self._database.execute(query, [self._column, number]).fetchone() for number in numbers]
        return {row[0]: (row[1], row[2]) for row in rows if row is not None}

    def _forget_the_dead(self) -> bool:
        """Deletes the claims of processes that ended without giving them up; whether no other process is left."""
        assert self._folder is not None
        alive = []
        for path in self._folder.glob("*.owner"):
            if path.stem == self._owner:
                continue
            if _is_held(path):
                alive.append(path.stem)
            else:
                path.unlink(missing_ok=True)
        owners = {row[0] for row in self._database.execute("SELECT DISTINCT owner FROM claims WHERE done = 0")}
        for owner in owners - {*alive, self._owner}:
            self._database.execute("DELETE FROM claims WHERE owner = ? AND done = 0", [owner])
        return not alive

    def _delete(self, condition: str, *values: str) -> None:
        self._database.execute(f"DELETE FROM claims WHERE column_name = ? AND {condition}", [self._column, *values])

    def _path(self, owner: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{owner}.owner"

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")


def _is_held(path: Path) -> bool:
    """Whether a living process holds the lock of this file."""
    with suppress(FileNotFoundError):
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
    return False


def _number(image_id: str) -> int:
    """The first 60 bits of the id."""
    return int(image_id[:15], 16)
