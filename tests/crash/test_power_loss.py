"""Power loss in the middle of a drain: whatever was not synced may be gone, cut or zero, and the spool brings it again.

The drain is killed at the moment it asks for the sync, so that nothing it wrote to the lake is safe. Then every file it
wrote loses what a seed says, and the lake is opened as its owner would.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lake import open_lake
from lake.spool.drain import drain
from lake.spool.spool import Spool
from tests.conftest import MakeLake, Say
from tests.crash import trace
from tests.crash.faults import Point, Subject
from tests.crash.kills import compared
from tests.crash.ledger import Ledger, compare
from tests.crash.service import ROOT, Service
from tests.crash.small_disk import drained
from tests.crash.test_kills import event_of

pytestmark = trace.needs_strace
LOSSES = ("kept", "kept", "kept", "gone", "empty", "cut", "zeros")


class Unsynced:
    """A lake whose last drain was killed before its sync. `written` are the files that drain wrote."""

    def __init__(self, lake: Path, ledger: Ledger, written: list[Path]) -> None:
        self.lake = lake
        self.ledger = ledger
        self.written = written

    def lost(self, to: Path, chance: random.Random) -> Counter[str]:
        """A copy in which the disk has lost some of what was written."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.lake, to)
        done: Counter[str] = Counter()
        for path in self.written:
            loss = chance.choice(LOSSES)
            damage(to / path, loss, chance)
            done[loss] += 1
        return done


def damage(path: Path, loss: str, chance: random.Random) -> None:
    data = path.read_bytes()
    if loss == "gone":
        path.unlink()
    elif loss == "empty":
        path.write_bytes(b"")
    elif loss == "cut":
        path.write_bytes(data[: chance.randrange(len(data) + 1)])
    elif loss == "zeros":
        path.write_bytes(bytes(len(data)))


@pytest.fixture
def unsynced(make_lake: MakeLake, tmp_path: Path) -> Unsynced:
    """One drain that was completed, one that was killed when it called sync."""
    lk = make_lake("unsynced")
    lake = Path(lk.uri)
    ledger = Ledger(seed=21)
    spool = Spool(lake / "spool")
    for _ in range(12):
        store(spool, ledger)
    drain(lk, spool)
    for _ in range(12):
        store(spool, ledger)
    spool.close()
    before = {path: path.stat().st_mtime_ns for path in files(lake)}
    with Subject("drains", tmp_path) as subject:
        outcome = subject.run(lake, Point("syncfs", "signal=SIGKILL", 1))
    assert outcome.injected
    written = [p.relative_to(lake) for p in files(lake) if before.get(p) != p.stat().st_mtime_ns]
    assert len(written) > 15
    return Unsynced(lake, ledger, written)


def store(spool: Spool, ledger: Ledger) -> None:
    request = ledger.next()
    spool.put([event_of(sent) for sent in request.events])
    ledger.acknowledge(request)


def files(lake: Path) -> list[Path]:
    return sorted(path for path in lake.glob("*.lance/**/*") if path.is_file())


@pytest.mark.parametrize("losses", [2, pytest.param(300, marks=pytest.mark.soak)])
def test_whatever_the_disk_lost_the_next_command_brings_it_back(
    unsynced: Unsynced, tmp_path: Path, losses: int, say: Say
) -> None:
    chance = random.Random(losses)
    done: Counter[str] = Counter()
    lake = tmp_path / "lost"
    for number in range(losses):
        lost = unsynced.lost(lake, chance)
        done.update(lost)
        command = [sys.executable, "-m", "search_app.cli.main", "status", "--lake", str(lake)]
        status = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert status.returncode == 0, f"loss {number} {dict(lost)}: {status.stderr[-3000:]}"
        assert "drained" in status.stderr
        opened = open_lake.open(str(lake))
        spool = Spool(lake / "spool")
        findings = compare(opened, spool, unsynced.ledger)
        spool.close()
        assert not findings.any, f"loss {number} {dict(lost)}: {findings.details} {status.stderr[-1000:]}"
    say(f"power loss during a drain: {losses} times, files {dict(done)}; 0 acknowledged events lost")


def test_a_server_brings_it_back_as_well(unsynced: Unsynced, tmp_path: Path) -> None:
    lake = tmp_path / "lost"
    chance = random.Random(3)
    unsynced.lost(lake, chance)

    async def live() -> Service:
        service = await Service(lake).ready()
        assert await drained(service) is not None, service.output()
        await service.stop()
        return service

    asyncio.run(live())
    findings = compared(lake, [unsynced.ledger])
    assert not findings.any, findings.details
