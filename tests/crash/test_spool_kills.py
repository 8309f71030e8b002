"""The spool by itself under SIGKILL: what it acknowledged is there, once and whole, receipts too."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lake.spool.spool import Spool
from tests.conftest import Say
from tests.crash.service import ROOT
from tests.crash.writer import group

LIFE_SECONDS = 0.05
# The spool is compared and emptied now and then: it would fill the disk.
COMPARED_EVERY = 50


class Killer:
    """Kills the writer again and again. `sent` maps the groups of the current stretch to their outcomes, or None."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.sent: dict[str, str | None] = {}
        self.kills = self.acked = self.known = self.stored = self.life = 0
        self._random = random.Random(seed)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.writer", str(folder), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )

    def kill_once(self) -> None:
        """One life of the writer: what is unacknowledged goes first."""
        self.life += 1
        again = [name for name, outcome in self.sent.items() if outcome is None]
        assert self._process.stdin is not None
        self._process.stdin.write(f"{self.life} {' '.join(again)}\n")
        self._process.stdin.flush()
        lines = self._lines()
        pid = int(next(lines).removeprefix("open "))
        time.sleep(self._random.uniform(0, LIFE_SECONDS))
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        for line in lines:
            word, name, *rest = line.split()
            if word == "send":
                self.sent.setdefault(name, None)
            else:
                assert "contradiction" not in rest[0]
                assert len(set(rest[0].split(","))) == 1, f"half of group {name} was stored"
                self.known += name in again and rest[0].startswith("known")
                self.stored += name in again and rest[0].startswith("stored")
                self.sent[name] = rest[0]

    def _lines(self) -> Iterator[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == "dead\n":
                return
            yield line.rstrip("\n")
        raise AssertionError("the writer's parent is gone")

    def compare(self) -> None:
        """Everything acknowledged is in the spool, once, with equal content, and nothing that was not sent."""
        spool = Spool(self.folder)
        waiting = spool.oldest(10**9, 10**12)
        stored = {event.event_id: event for event in waiting}
        assert len(stored) == len(waiting)
        sent: dict[str, Any] = {}
        for name, outcome in self.sent.items():
            events = group(self.seed, name)
            sent |= {event.event_id: event for event in events}
            assert sum(event.event_id in stored for event in events) in (0, len(events)), (
                f"half of group {name} is there"
            )
            if outcome is not None:
                assert {e.event_id for e in events} <= stored.keys(), f"group {name} was acknowledged and is lost"
                receipt = spool.receipt(name)
                assert receipt is not None
                assert receipt.facts == name
                # A retry is `known`; the receipt has the outcomes of the request that was stored.
                assert receipt.outcomes == ["stored"] * len(events) or outcome.startswith("known")
                self.acked += len(events)
        for own, event in stored.items():
            assert own in sent, "nobody sent it"
            expected = sent[own]
            assert (event.row, event.digest, event.image_id) == (expected.row, expected.digest, expected.image_id)
            assert spool.data(event) == expected.data
        spool.forget(waiting)
        spool.close()
        self.sent = {
            name: None
            for name, outcome in self.sent.items()
            if outcome is None and group(self.seed, name)[0].event_id not in stored
        }

    def close(self) -> None:
        self._process.communicate(timeout=10)


@pytest.mark.parametrize("kills", [50, pytest.param(5_000, marks=pytest.mark.soak)])
def test_what_the_spool_acknowledged_survives_every_kill(tmp_path: Path, kills: int, say: Say) -> None:
    """Groups put by four threads; killed 0 to 50 ms after it opened; what was not acknowledged is put again."""
    killer = Killer(tmp_path / "spool", seed=kills)
    for number in range(1, kills + 1):
        killer.kill_once()
        if number % COMPARED_EVERY == 0:
            killer.compare()
    killer.close()
    assert list((tmp_path / "spool" / "segments").iterdir()) == []
    retried = killer.known + killer.stored
    say(
        f"{killer.kills} kills of the spool: {killer.acked} events acknowledged, 0 lost, 0 doubled, 0 torn; "
        f"{killer.known} of {retried} groups put again had been stored unacknowledged"
    )
    assert killer.acked > kills
    assert killer.known > 0
