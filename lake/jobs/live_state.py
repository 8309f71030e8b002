"""What changes too often for a table: claims, heartbeats, progress and requests to cancel, in a small SQLite file.

Two hundred changes of progress a second cost no commit in Lance. The file is beside the lake's tables, in `jobs/`. A
lost or damaged file is made again: it loses progress, never a job.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lake.jobs import processes
from lake.jobs.processes import ProcessIdentity
from lake.storage.side_folder import side_folder

if TYPE_CHECKING:
    from lake.storage.store import Lake

T = TypeVar("T")

FOLDER = "jobs"
FILE = "live.sqlite"
# A worker writes a heartbeat this often. A worker whose process is seen to have ended is dead at once.
BEAT_SECONDS = 2.0
# Where nobody can look at its process, a worker is dead without a heartbeat for this long.
SILENT_SECONDS = 10.0
# A process that runs and writes no heartbeat for this long hangs; a busy machine may delay one for seconds.
HUNG_SECONDS = 60.0
BUSY_SECONDS = 10.0
# A second try opens the file again, a third one makes a new one.
ATTEMPTS = 3
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
LOG_DAYS = 30
_VERSION = 1
_TABLES = """
CREATE TABLE claims (job TEXT PRIMARY KEY, attempt INTEGER, token TEXT, queued INTEGER, place TEXT, pid INTEGER,
    started INTEGER, claimed REAL, beat REAL, wall REAL, done REAL, total REAL, unit TEXT, stage TEXT, facts TEXT,
    cancel TEXT);
CREATE TABLE supervisors (token TEXT PRIMARY KEY, place TEXT, pid INTEGER, started INTEGER, beat REAL, wall REAL);
CREATE TABLE settings (name TEXT PRIMARY KEY, value REAL);
"""


class LimitReached(Exception):
    """So many queued jobs run that no other may begin."""


@dataclass(frozen=True)
class Progress:
    """How far a job is: `done` of `total` in `unit`s (images, steps, %), and its `stage` in words.

    `total` is None while it is unknown. `facts`: other values by name, such as the epoch; only texts and numbers
    are stored.
    """

    done: float = 0.0
    total: float | None = None
    unit: str = ""
    stage: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float | None:
        """0 to 1; None while the total is unknown."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total else None


@dataclass(frozen=True)
class Claim:
    """One attempt of a job that a process has to itself. `queued`: it counts against the limit of workers."""

    job: str
    attempt: int
    token: str
    queued: bool


@dataclass(frozen=True)
class LiveJob:
    """What a worker last wrote about its attempt. `alive`: it runs; `seconds`: since it was claimed.

    `cancelled_by`: who asked to cancel it; None if nobody did.
    """

    claim: Claim
    process: ProcessIdentity
    alive: bool
    seconds: float
    progress: Progress
    cancelled_by: str | None


class LiveState:
    """The open file. Threads may share it; not usable after a fork. Raises OSError if it cannot be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: int | None = None  # the number of the file on the disk: another process may replace it

    def claim(self, job: str, attempt: int, *, queued: bool, most: int | None = None) -> Claim | None:
        """Takes an attempt of a job for this process; None if a living process has the job.

        One transaction: two processes never take one job. Raises LimitReached while `most` queued jobs run.
        """
        claim = Claim(job, attempt, uuid.uuid4().hex, queued)

        def take(connection: sqlite3.Connection) -> Claim | None:
            rows = [_live(row) for row in connection.execute("SELECT * FROM claims WHERE job = ? OR queued", [job])]
            if any(row.alive and row.claim.job == job for row in rows):
                return None
            if most is not None and sum(row.alive and row.claim.queued for row in rows) >= most:
                raise LimitReached
            _write(connection, claim, Progress(), None)
            return claim

        return self._transaction(take)

    def beat(self, claim: Claim, progress: Progress) -> tuple[bool, str | None]:
        """Writes a heartbeat of this process and its progress. A claim of a lost file is written again.

        Returns whether the claim is still its own, and who asked to cancel the job.
        """

        def write(connection: sqlite3.Connection) -> tuple[bool, str | None]:
            row = connection.execute("SELECT token, cancel FROM claims WHERE job = ?", [claim.job]).fetchone()
            if row is not None and row["token"] != claim.token:
                return False, None
            cancel = None if row is None else row["cancel"]
            _write(connection, claim, progress, cancel)
            return True, cancel

        return self._transaction(write)

    def cancel_request(self, claim: Claim) -> str | None:
        """Who asked to cancel the job of the claim; None if nobody did."""
        row = self._read("SELECT cancel FROM claims WHERE token = ?", [claim.token])
        return row[0]["cancel"] if row else None

    def ask_to_cancel(self, job: str, by: str) -> bool:
        """Asks the worker of the job to end. Returns False if no living process has the job."""

        def ask(connection: sqlite3.Connection) -> bool:
            rows = connection.execute("SELECT * FROM claims WHERE job = ?", [job]).fetchall()
            if not rows or not _live(rows[0]).alive:
                return False
            connection.execute("UPDATE claims SET cancel = coalesce(cancel, ?) WHERE job = ?", [by, job])
            return True

        return self._transaction(ask)

    def release(self, claim: Claim) -> None:
        """Ends a claim. The state of the job must be a row by now."""
        self._transaction(lambda connection: connection.execute("DELETE FROM claims WHERE token = ?", [claim.token]))

    def jobs(self) -> dict[str, LiveJob]:
        """Every claim, by job: of workers that run, and of dead ones that nobody has noticed yet."""
        return {row["job"]: _live(row) for row in self._read("SELECT * FROM claims", [])}

    def complete(self) -> bool:
        """Whether every worker that runs here has written a heartbeat by now: not while the file is new, or lost."""
        made = self._read("SELECT value FROM settings WHERE name = 'made'", [])
        return bool(made) and time.time() - made[0]["value"] > SILENT_SECONDS

    # Supervisors -------------------------------------------------------------------------------------------

    def supervise(self, token: str) -> None:
        """Writes the heartbeat of a supervisor, which starts waiting jobs. `token`: its own, unguessable text."""
        me = processes.own()
        self._transaction(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO supervisors VALUES (?, ?, ?, ?, ?, ?)",
                [token, me.place, me.pid, me.started, time.monotonic(), time.time()],
            )
        )

    def retire(self, token: str) -> None:
        """Ends a supervisor's registration."""
        self._transaction(lambda connection: connection.execute("DELETE FROM supervisors WHERE token = ?", [token]))

    def supervised(self) -> bool:
        """Whether a supervisor runs."""
        rows = self._read("SELECT * FROM supervisors", [])
        return any(_alive(row) for row in rows)

    def settings(self) -> dict[str, float]:
        """The limits that the last server set: `most` jobs at once, `memory_gb` a worker."""
        return {row["name"]: row["value"] for row in self._read("SELECT * FROM settings WHERE name <> 'made'", [])}

    def set_limits(self, most: int, memory_gb: float | None) -> None:
        """Sets the limits for every supervisor of this lake, from now on."""
        if (most, memory_gb) == (self.settings().get("most", 1), self.settings().get("memory_gb")):
            return

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM settings WHERE name <> 'made'")
            values = {"most": float(most), "memory_gb": memory_gb}
            rows = [(name, value) for name, value in values.items() if value is not None]
            connection.executemany("INSERT INTO settings VALUES (?, ?)", rows)

        self._transaction(write)

    # The file ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _read(self, query: str, parameters: Iterable[Any]) -> list[sqlite3.Row]:
        """Rows; none if there is no file yet. Reading writes nothing."""
        if self._connection is None and not (self.folder / FILE).exists():
            return []
        return self._safely(lambda connection: connection.execute(query, list(parameters)).fetchall())

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run(connection: sqlite3.Connection) -> T:
            with _immediate(connection):
                return work(connection)

        return self._safely(run)

    def _safely(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work`; again, with a new file, if the file is damaged or was deleted."""
        with self._lock:
            if self._connection is not None and self._inode() != self._opened:
                self.close()
            for attempt in range(ATTEMPTS):
                try:
                    return work(self._open())
                except sqlite3.DatabaseError as error:
                    self.close()
                    if attempt == ATTEMPTS - 1:
                        raise OSError(f"{self.folder / FILE}: {error}") from error
                    if error.sqlite_errorcode in DAMAGED:
                        for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
                            (self.folder / name).unlink(missing_ok=True)
            raise AssertionError

    def _inode(self) -> int | None:
        try:
            return (self.folder / FILE).stat().st_ino
        except OSError:
            return None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self.folder / FILE, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            connection.row_factory = sqlite3.Row
            self._connection, self._opened = connection, self._inode()
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")  # a damaged file is made again, and a sync costs 30 ms
            with _immediate(connection):
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                if version != _VERSION:
                    for table in ("claims", "supervisors", "settings"):
                        connection.execute(f"DROP TABLE IF EXISTS {table}")
                    for statement in _TABLES.split(";"):
                        connection.execute(statement)
                    connection.execute("INSERT INTO settings VALUES ('made', ?)", [time.time()])
                    connection.execute(f"PRAGMA user_version = {_VERSION}")
        return self._connection


def of(lake: Lake) -> LiveState:
    """The live state of a lake."""
    return LiveState(side_folder(lake, FOLDER))


def log_file(lake: Lake, job: str) -> Path:
    """The file of what a job's workers wrote to stderr. It may not exist."""
    return side_folder(lake, FOLDER) / f"{job}.log"


def log_files(lake: Lake) -> list[Path]:
    """The logs of all jobs, and of what starts them."""
    return sorted(side_folder(lake, FOLDER).glob("*.log"))


def remove_old_logs(lake: Lake) -> int:
    """Deletes the logs that nothing was written to for LOG_DAYS; returns their number."""
    removed, limit = 0, time.time() - LOG_DAYS * 86_400
    for path in log_files(lake):
        with suppress(OSError):
            if path.stat().st_mtime < limit:
                path.unlink()
                removed += 1
    return removed


@contextmanager
def _immediate(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _write(connection: sqlite3.Connection, claim: Claim, progress: Progress, cancel: str | None) -> None:
    me, now = processes.own(), time.monotonic()
    facts = {name: value for name, value in progress.facts.items() if isinstance(value, str | int | float)}
    before = connection.execute("SELECT claimed FROM claims WHERE token = ?", [claim.token]).fetchone()
    connection.execute(
        "INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            *(claim.job, claim.attempt, claim.token, int(claim.queued), me.place, me.pid, me.started),
            *(before["claimed"] if before else time.time(), now, time.time()),
            *(progress.done, progress.total, progress.unit, progress.stage, json.dumps(facts), cancel),
        ],
    )


def _live(row: sqlite3.Row) -> LiveJob:
    return LiveJob(
        Claim(row["job"], row["attempt"], row["token"], bool(row["queued"])),
        ProcessIdentity(row["place"], row["pid"], row["started"]),
        _alive(row),
        max(0.0, time.time() - row["claimed"]),
        Progress(row["done"], row["total"], row["unit"], row["stage"], json.loads(row["facts"])),
        row["cancel"],
    )


def _alive(row: sqlite3.Row) -> bool:
    seen = processes.running(ProcessIdentity(row["place"], row["pid"], row["started"]))
    if seen is not None:
        return bool(seen and time.monotonic() - row["beat"] < HUNG_SECONDS)
    return bool(abs(time.time() - row["wall"]) < SILENT_SECONDS)
