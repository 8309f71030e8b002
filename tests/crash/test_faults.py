"""Every system call may fail or be the last: on the way to an acknowledgement, and on the way to the lake.

Whatever the point, an event is either acknowledged and there, or refused and, sent again, there once. The process
never hangs, and after an error it goes on.
"""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from lake import open_lake
from lake.errors import LakeloopError
from lake.spool.drain import drain
from lake.spool.spool import Spool
from tests.conftest import MakeLake, Say
from tests.crash import trace
from tests.crash.faults import Outcome, Point, Subject, sample
from tests.crash.ledger import Ledger, compare
from tests.crash.subject import GROUPS, SEED
from tests.crash.test_kills import event_of
from tests.crash.writer import group

pytestmark = trace.needs_strace
SOAK = pytest.param(100_000, marks=pytest.mark.soak, id="every point")
# What an API turns into 503 or 507; anything else would be a 500.
EXPECTED = {"LakeloopError", "OSError", "OperationalError"}


def summary(points: list[Point], tried: Counter[str], whole: int, path: str) -> str:
    return f"faults on the path to {path}: {len(points)} of {whole} points tried, {dict(tried)}"


# To an acknowledgement -------------------------------------------------------------------------------------


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A spool as a killed server leaves it: a journal that is not copied, an event that was drained, one that waits."""
    folder = tmp_path / "used"
    spool = Spool(folder)
    spool.put(group(SEED, "drained"))
    spool.forget(spool.oldest(100, 10**9))
    spool.put(group(SEED, "waiting"))
    killed = tmp_path / "killed"
    shutil.copytree(folder, killed)
    spool.close()
    return killed


@pytest.mark.parametrize("count", [pytest.param(60, id="some points"), SOAK])
def test_a_fault_while_storing_loses_nothing_that_was_acknowledged(
    tmp_path: Path, used: Path, count: int, say: Say
) -> None:
    """Three groups put into a new spool and into one a killed server left."""
    tried: Counter[str] = Counter()
    for name, beginning in (("a new spool", None), ("a spool in use", used)):
        target = tmp_path / "target"
        with Subject("puts", tmp_path) as subject:
            fresh(target, beginning)
            points = subject.points(target)
            chosen = sample(points, count // 2, seed=count)
            for point in chosen:
                fresh(target, beginning)
                outcome = subject.run(target, point)
                try:
                    check_stored(target, point, outcome, also=[] if beginning is None else ["waiting"])
                except AssertionError as error:
                    raise AssertionError(f"{point}, {name}: {outcome}") from error
                tried[point.fault.partition("=")[2]] += 1
        say(summary(chosen, tried, len(points), f"an acknowledgement, {name}"))


def fresh(target: Path, beginning: Path | None) -> None:
    shutil.rmtree(target, ignore_errors=True)
    if beginning is not None:
        shutil.copytree(beginning, target)


def check_stored(folder: Path, point: Point, outcome: Outcome, also: list[str]) -> None:
    assert not outcome.hung
    assert outcome.code == (-signal.SIGKILL if "SIGKILL" in point.fault and outcome.injected else 0)
    assert {kind for _, kind, _ in outcome.failed} <= EXPECTED
    if "SIGKILL" not in point.fault and outcome.unopened is None:
        assert set(outcome.acked) == set(GROUPS), "after an error it did not go on"
    spool = Spool(folder)
    before = {event.event_id for event in spool.oldest(10**6, 10**9)}
    for name in GROUPS:
        events = group(SEED, name)
        assert len({event.event_id in before for event in events}) == 1, f"half of {name} is there"
        outcomes = set(spool.put(events))
        assert outcomes <= {"stored", "known"}
        assert outcomes == {"known"} or name not in outcome.acked, f"{name} was acknowledged and is lost"
    waiting = spool.oldest(10**6, 10**9)
    expected = {event.event_id: event for name in [*GROUPS, *also] for event in group(SEED, name)}
    assert sorted(event.event_id for event in waiting) == sorted(expected)
    for event in waiting:
        assert spool.data(event) == expected[event.event_id].data
        assert event.row == expected[event.event_id].row
    spool.close()


# To the lake -----------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(make_lake: MakeLake) -> tuple[Path, Ledger]:
    """A lake with a spool that has every kind of event, and the ledger of them."""
    lk = make_lake("waiting")
    ledger = Ledger(seed=6)
    spool = Spool(Path(lk.uri) / "spool")
    while {kind for kind, _ in ledger.events} != {"prediction", "image", "feedback"}:
        request = ledger.next()
        spool.put([event_of(sent) for sent in request.events])
        ledger.acknowledge(request)
    spool.close()
    return Path(lk.uri), ledger


@pytest.mark.parametrize("count", [pytest.param(6, id="some points"), SOAK])
def test_a_fault_while_draining_brings_everything_into_the_lake_once(
    tmp_path: Path, waiting: tuple[Path, Ledger], count: int, say: Say
) -> None:
    beginning, ledger = waiting
    tried: Counter[str] = Counter()
    target = tmp_path / "target"
    with Subject("drains", tmp_path) as subject:
        fresh(target, beginning)
        points = [p for p in subject.points(target) if not invented(p)]
        chosen = sample(points, count, seed=count)
        for point in chosen:
            fresh(target, beginning)
            outcome = subject.run(target, point)
            try:
                check_drained(target, ledger, point, outcome)
            except AssertionError as error:
                raise AssertionError(f"{point}: {outcome}") from error
            tried[point.fault.partition("=")[2]] += 1
    say(summary(chosen, tried, len(points), "the lake"))


def invented(point: Point) -> bool:
    """Lance's threads wake each other by writing to an eventfd. That cannot fail, and strace would make it fail.

    Errors of writes to its files come from a real full disk: `test_disk_full.py`.
    """
    return point.call == "write" and "SIGKILL" not in point.fault


def check_drained(folder: Path, ledger: Ledger, point: Point, outcome: Outcome) -> None:
    assert not outcome.hung
    assert outcome.code == (-signal.SIGKILL if "SIGKILL" in point.fault and outcome.injected else 0)
    assert {kind for _, kind, _ in outcome.failed} <= EXPECTED
    opened = open_lake.open(str(folder))
    spool = Spool(folder / "spool")
    assert drain(opened, spool) is not None
    findings = compare(opened, spool, ledger)
    spool.close()
    assert not findings.any, findings.details


def test_events_are_not_set_aside_while_the_lake_cannot_be_read(waiting: tuple[Path, Ledger]) -> None:
    """It is the disk's fault, not theirs: they wait, and come in when it reads again."""
    folder, ledger = waiting
    opened = open_lake.open(str(folder))
    spool = Spool(folder / "spool")
    assert drain(opened, spool) is not None
    again = ledger.new("named")  # so that the drain has to look its image up
    spool.put([event_of(sent) for sent in again.events])
    ledger.acknowledge(again)
    files = {path: path.read_bytes() for path in folder.glob("images.lance/data/*.lance")}
    for path in files:
        path.unlink()
        path.mkdir()
    # Another handle: the one above may remember what it has read.
    unreadable = open_lake.open(str(folder))
    with pytest.raises((LakeloopError, OSError)):
        drain(unreadable, spool)
    assert (spool.depth().events, spool.parked.list()) == (len(again.events), [])
    for path, data in files.items():
        path.rmdir()
        path.write_bytes(data)
    check_drained(folder, ledger, Point("read", "error=EISDIR", 1), Outcome(code=0))
    spool.close()
