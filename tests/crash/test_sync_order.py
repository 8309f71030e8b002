"""Power loss, by the order of system calls: data is synced before it is acknowledged, and before a drain forgets it."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Say
from tests.crash import trace
from tests.crash.http import Connection
from tests.crash.ledger import Ledger, Request
from tests.crash.service import ROOT, Service
from tests.crash.trace import Audit, Call

pytestmark = trace.needs_strace
REQUESTS = 30


@dataclasses.dataclass
class Traced:
    """A strace of a service's whole life. `needs`: the syncs that each response must have waited for."""

    calls: list[Call]
    needs: list[set[str]]
    lake: Path
    wrong: list[str]

    @property
    def spool(self) -> Path:
        return self.lake / "spool"

    def audits(self, calls: Sequence[Call] | None = None) -> list[Audit]:
        """The three rules, on the calls as they were or on these."""
        calls = self.calls if calls is None else calls
        return [
            trace.audit_answers(calls, self.spool, self.needs),
            trace.audit_drains(calls, self.lake, self.spool),
            trace.audit_journal(calls, self.spool),
        ]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """Predictions, batches, images, events that name them and verdicts, one at a time; drained, and more of them."""
    from lake import open_lake

    folder = tmp_path_factory.mktemp("traced")
    lake = folder / "lake"
    open_lake.create(str(lake))
    return asyncio.run(live(folder, lake))


async def live(folder: Path, lake: Path) -> Traced:
    service = await Service(lake, around=trace.options(folder / "trace")).ready()
    ledger = Ledger(seed=11)
    connection = Connection(service.port)
    needs = []
    for number in range(2 * REQUESTS):
        if number == REQUESTS:
            await drained(lake / "spool" / "spool.sqlite")
        request = ledger.next()
        again = request.first_answer is not None
        ledger.take(request, await connection.ask(request.raw))
        needs.append(set() if again else needed(request))
    await connection.close()
    await service.stop()
    calls = await asyncio.to_thread(trace.finished, folder / "trace", service.process.pid)
    return Traced(calls, needs, lake, ledger.wrong)


def needed(request: Request) -> set[str]:
    return {"sqlite-wal"} | ({"seg"} if any(event.data for event in request.events) else set())


async def drained(database: Path) -> None:
    """Waits until the spool is empty; reads the database, because the response to a request would be audited, too."""
    deadline = time.monotonic() + 30
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
        while reader.execute("SELECT count(*) FROM events").fetchone()[0]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


def test_every_answer_and_every_drain_waits_for_its_syncs(traced: Traced, say: Say) -> None:
    audits = traced.audits()
    assert traced.wrong == []
    assert [violation for audit in audits for violation in audit.violations] == []
    counts = {name: count for audit in audits for name, count in audit.checked.items()}
    say(f"order of syncs: {counts}, 0 violations")
    assert counts["answers"] == 2 * REQUESTS
    assert counts["files synced for them"] >= 3
    assert counts["drains"] >= 2
    assert counts["files of the lake"] >= 20
    assert counts["journals begun anew"] >= 1


# A process that stores a group and dies, and one that finds it. Each says so as a server would.
STORES = """
import os, signal, sys
from pathlib import Path
from lake.spool.spool import Spool
from tests.crash import writer
spool = Spool(Path(sys.argv[1]))
writer.put(spool, 0, "one")
os.write(1, b"ack stored")
os.kill(os.getpid(), signal.SIGKILL)
"""
FINDS = """
import os, sys
from pathlib import Path
from lake.spool.spool import Spool
from tests.crash import writer
spool = Spool(Path(sys.argv[1]))
assert spool.receipt("one") and spool.event("prediction", writer.group(0, "one")[0].event_id)
os.write(1, b"ack known")
"""


def test_the_names_of_a_new_spool_s_folders_are_synced_all_the_way_up(tmp_path: Path) -> None:
    """As for `--spool disks/fast/spool` when nothing of it is there yet."""
    disks = tmp_path / "disks"
    disks.mkdir()
    command = [*trace.options(tmp_path / "trace"), sys.executable, "-c", STORES, str(disks / "new" / "fast" / "spool")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.communicate()[0] == b"ack stored"
    calls = trace.finished(tmp_path / "trace", process.pid)
    assert trace.audit_answers(calls, disks, [{"sqlite-wal", "seg"}], [str(disks)], response="ack").violations == []


def test_what_a_killed_server_had_stored_is_synced_before_it_is_known(tmp_path: Path) -> None:
    """A kill may fall between the journal's write and its sync: the next process finds the event, but is it on disk?"""
    spool = tmp_path / "spool"
    first = subprocess.run([sys.executable, "-c", STORES, str(spool)], cwd=ROOT, capture_output=True)
    assert (first.stdout, first.returncode) == (b"ack stored", -signal.SIGKILL)
    existing = [str(path) for path in spool.rglob("*")]
    command = [*trace.options(tmp_path / "trace"), sys.executable, "-c", FINDS, str(spool)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as second:
        assert second.communicate()[0] == b"ack known"
    calls = trace.finished(tmp_path / "trace", second.pid)
    audit = trace.audit_answers(calls, spool, [{"sqlite-wal"}], existing, response="ack")
    assert audit.violations == []


# The rules themselves: a trace doctored as a fault would leave it must not pass ----------------------------


def without(name: str, ending: str) -> Callable[[Traced], list[Call]]:
    return lambda t: [c for c in t.calls if not (c.name == name and c.paths and c.paths[0].endswith(ending))]


def failing(name: str, ending: str) -> Callable[[Traced], list[Call]]:
    """One of the syncs fails, in the middle of them all."""

    def doctored(t: Traced) -> list[Call]:
        syncs = [c for c in t.calls if c.name == name and c.paths[0].endswith(ending)]
        sync = syncs[len(syncs) // 2]
        return [dataclasses.replace(c, result=-1) if c is sync else c for c in t.calls]

    return doctored


def journal_before_an_answer(t: Traced) -> tuple[Call, Call]:
    """A response from the middle, and the last sync of the journal before it: other syncs are the drainer's."""
    answers = [c for c in t.calls if '"HTTP/1.1 2' in c.text]
    answer = answers[len(answers) // 2]
    sync = [c for c in t.calls if c.name == "fdatasync" and c.paths[0].endswith("-wal") and c.ended < answer.begun][-1]
    return answer, sync


def failing_before_an_answer(t: Traced) -> list[Call]:
    _, sync = journal_before_an_answer(t)
    return [dataclasses.replace(c, result=-1) if c is sync else c for c in t.calls]


def answered_too_early(t: Traced) -> list[Call]:
    """A response is sent when its sync has begun but not ended."""
    answer, sync = journal_before_an_answer(t)
    late = dataclasses.replace(sync, ended=answer.ended + 0.5)
    return [late if c is sync else c for c in t.calls]


def lake_written_after_the_sync(t: Traced) -> list[Call]:
    sync = next(c for c in t.calls if c.name == "syncfs")
    written = [c for c in t.calls if c.name == "write" and c.paths[0].startswith(f"{t.lake}/audit.lance")]
    write = [c for c in written if c.ended < sync.begun][-1]
    moved = dataclasses.replace(write, begun=int(sync.ended), ended=sync.ended)
    return sorted((moved if c is write else c for c in t.calls), key=lambda c: c.begun)


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (without("fdatasync", ".seg"), 0),
        (without("fdatasync", ".sqlite-wal"), 0),
        (without("fsync", "/segments"), 0),
        (without("fsync", "/lake"), 0),
        (failing("fdatasync", ".seg"), 0),
        (failing_before_an_answer, 0),
        (answered_too_early, 0),
        (without("syncfs", "/lake"), 1),
        (failing("syncfs", "/lake"), 1),
        (lake_written_after_the_sync, 1),
        (without("fdatasync", "/spool.sqlite"), 2),
    ],
    ids=[
        "segments never synced",
        "journal never synced",
        "a segment's name never synced",
        "the spool's name never synced",
        "sync of a segment fails",
        "sync of the journal fails",
        "answered during the sync",
        "lake never synced",
        "sync of the lake fails",
        "lake written after its sync",
        "database never synced",
    ],
)
def test_a_doctored_trace_does_not_pass(traced: Traced, fault: Callable[[Traced], list[Call]], rule: int) -> None:
    assert traced.audits(fault(traced))[rule].violations
