"""Who drains: one process at a time, the next when it dies, and whoever opens the lake when there is nobody."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lake import open_lake
from lake.spool.drain import Sampling, drain
from lake.spool.spool import Spool
from lake.upkeep.drainer import arguments
from search_app.server.child_processes import Child
from tests.conftest import MakeLake, Say
from tests.crash.kills import Load, compared
from tests.crash.ledger import Ledger, compare
from tests.crash.service import ROOT, Service, alive, holder
from tests.crash.test_kills import event_of

KILLS = 3


class Drainers:
    """Processes that drain, as servers start them. `lines` has their output."""

    def __init__(self, lake: Path) -> None:
        self.lake = lake
        self.lines: dict[int, list[str]] = {}
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._threads: list[threading.Thread] = []

    def start(self, spool: Path) -> int:
        process = subprocess.Popen(
            arguments(str(self.lake), spool, Sampling()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self._processes[process.pid] = process
        self.lines[process.pid] = []
        self._threads.append(threading.Thread(target=self._listen, args=(process,)))
        self._threads[-1].start()
        return process.pid

    def kill(self, pid: int) -> None:
        self._processes[pid].kill()
        self._processes[pid].wait()

    def end(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)
        for thread in self._threads:
            thread.join()
        for process in self._processes.values():
            assert process.stdout is not None
            process.stdout.close()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines[process.pid].append(line)


@contextmanager
def drainers(lake: Path) -> Iterator[Drainers]:
    group = Drainers(lake)
    try:
        yield group
    finally:
        group.end()


def store(spool: Spool, ledger: Ledger, count: int) -> None:
    for _ in range(count):
        request = ledger.next()
        spool.put([event_of(sent) for sent in request.events])
        ledger.acknowledge(request)


def emptied(spool: Spool, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while spool.depth().events and time.monotonic() < deadline:
        time.sleep(0.02)
    return not spool.depth().events


def test_of_two_drainers_one_drains_and_the_other_goes_on_when_it_is_killed(make_lake: MakeLake, say: Say) -> None:
    lk = make_lake()
    lake = Path(lk.uri)
    spool = Spool(lake / "spool")
    ledger = Ledger(seed=31)
    lock = lake / "spool" / "drain.lock"
    chance = random.Random(31)
    killed = 0
    with drainers(lake) as running:
        living = {running.start(spool.folder), running.start(spool.folder)}
        for _ in range(KILLS):
            store(spool, ledger, 15)
            deadline = time.monotonic() + 20
            while (draining := holder(lock)) not in living:
                assert time.monotonic() < deadline, "nobody drains"
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.1))
            assert draining is not None
            running.kill(draining)
            living.remove(draining)
            killed += 1
            assert emptied(spool), "the other drainer did not take over"
            living.add(running.start(spool.folder))
        store(spool, ledger, 15)
        assert emptied(spool)
    findings = compare(lk, None, ledger)
    say(
        f"{killed} drainers killed while draining, another went on each time; {findings.acked} events, each stored once"
    )
    assert not findings.any, findings.details
    spool.close()


def test_two_spools_with_the_same_ids_feed_one_lake_each_event_once(make_lake: MakeLake) -> None:
    """As when a client retries at another server. Where they disagree the first that was drained stands."""
    lk = make_lake()
    lake = Path(lk.uri)
    ledger, other = Ledger(seed=32), Ledger(seed=33)
    spools = [Spool(lake.parent / name) for name in ("one", "two")]
    for spool in spools:
        again = Ledger(seed=32)
        for _ in range(40):
            request = again.next()
            spool.put([event_of(sent) for sent in request.events])
            again.acknowledge(request)
        ledger = again
    (disputed,) = other.new("prediction").events
    for number, spool in enumerate(spools):
        spool.put([event_of(disputed)])
        disputed.says["label"] = f"another {number}"
    with drainers(lake) as running:
        pids = [running.start(spool.folder) for spool in spools]
        assert all(emptied(spool) for spool in spools)
    labels = lk.scan("samples", ["label"], f"prediction_id = '{disputed.event_id}'")["label"].to_pylist()
    assert len(labels) == 1
    assert sum('"contradictions": 1' in line for pid in pids for line in running.lines[pid]) == 1
    lk.delete("samples", f"prediction_id = '{disputed.event_id}'")
    lk.delete("images", f"image_id = '{disputed.image_id}'")
    lk.delete("audit", f"target = '{disputed.event_id}'")
    findings = compare(lk, None, ledger)
    assert not findings.any, findings.details
    for spool in spools:
        spool.close()


def test_two_drains_that_meet_at_every_commit_add_each_row_once(make_lake: MakeLake) -> None:
    """Both look, find nothing, and write the same rows at the same moment: Lance must see that their keys are equal."""
    lake = Path(make_lake().uri)
    spools = [Spool(lake.parent / name) for name in ("one", "two")]
    for spool in spools:
        ledger = Ledger(seed=35)
        store(spool, ledger, 30)
    meeting = threading.Barrier(2)
    met = []

    def drained(spool: Spool) -> None:
        own = open_lake.open(str(lake))
        commit = own.commit

        def together(name: str, write: Callable[[], int]) -> int:
            with suppress(threading.BrokenBarrierError):  # the other has nothing more to write
                meeting.wait(5)
                met.append(name)
            return commit(name, write)

        own.commit = together  # type: ignore[method-assign, assignment]
        drain(own, spool)

    threads = [threading.Thread(target=drained, args=(spool,)) for spool in spools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {"thumbnails", "images", "samples", "audit"} <= set(met)
    findings = compare(open_lake.open(str(lake)), None, ledger)
    assert not findings.any, findings.details
    for spool in spools:
        assert not spool.depth().events
        spool.close()


def test_a_drainer_without_its_server_ends_though_nothing_happens(make_lake: MakeLake) -> None:
    lake = Path(make_lake().uri)

    async def live() -> float:
        service = await Service(lake).ready()
        while (drainer := service.drainer()) is None:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        started = time.monotonic()
        service.kill(whole_group=False)
        while alive(drainer) and time.monotonic() - started < 20:
            await asyncio.sleep(0.05)
        return time.monotonic() - started

    assert asyncio.run(live()) < 15


def test_a_child_that_could_not_be_started_is_tried_again(tmp_path: Path) -> None:
    """As when the machine has no process left to give."""
    heard: list[dict[str, Any]] = []
    program = tmp_path / "program"
    child = Child("child", [str(program)], heard.append)
    child.start()
    time.sleep(0.1)
    written = tmp_path / "written"
    written.write_text("#!/bin/sh\necho '{\"said\": 1}'\nread end\n")
    written.chmod(0o700)
    written.rename(program)
    deadline = time.monotonic() + 10
    while not heard and time.monotonic() < deadline:
        time.sleep(0.02)
    child.stop(5)
    assert heard == [{"said": 1}]


def test_the_next_command_drains_what_a_killed_server_left(make_lake: MakeLake) -> None:
    lk = make_lake()
    lake = Path(lk.uri)
    ledger = Ledger(seed=34)

    async def killed() -> None:
        service = await Service(lake).ready()
        load = Load(ledger, service.port)
        await asyncio.sleep(0.3)
        while_alive = await asyncio.to_thread(status, lake)
        assert "drained" not in while_alive.stderr, "a living server's spool is not for others to drain"
        service.kill()
        await load.ended()

    asyncio.run(killed())
    waiting = Spool(lake / "spool")
    left = waiting.depth().events
    waiting.close()
    assert left
    after = status(lake)
    assert f"drained {left:,} events of a stopped server" in after.stderr
    assert "drained" not in status(lake).stderr
    findings = compared(lake, [ledger])
    assert not findings.any, findings.details
    assert open_lake.open(str(lake)).dataset("samples").count_rows() >= findings.acked / 2


def status(lake: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "search_app.cli.main", "status", "--lake", str(lake)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done
