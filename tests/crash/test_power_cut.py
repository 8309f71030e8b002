"""The spool after a power cut at any moment: what was acknowledged is there, and no row without its bytes."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lake.spool.spool import Spool
from tests.conftest import Say
from tests.crash import power_cut, trace
from tests.crash.service import ROOT
from tests.crash.writer import group

pytestmark = trace.needs_strace
GROUPS = ("one", "two", "three", "four", "five")
DRAINED = ("one", "three")
# Some groups are drained in between, so that the journal is copied into the database and begun anew.
PROGRAM = f"""
import os, sys
from pathlib import Path
from lake.spool.spool import Spool
from tests.crash import writer
spool = Spool(Path(sys.argv[1]))
for name in {GROUPS}:
    writer.put(spool, 0, name)
    os.write(1, f"acked {{name}}".encode())
    if name in {DRAINED}:
        os.write(1, f"drained {{name}}".encode())
        ids = [event.event_id for event in writer.group(0, name)]
        spool.forget([event for event in spool.oldest(100, 10**9) if event.event_id in ids])
spool.close()
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> power_cut.Disk:
    """Everything a spool of five groups wrote."""
    folder = tmp_path_factory.mktemp("power")
    command = [*power_cut.options(folder / "trace"), sys.executable, "-c", PROGRAM, str(folder / "spool")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.communicate()
    assert process.returncode == 0
    calls = trace.finished(folder / "trace", process.pid)
    disks = power_cut.Disk(str(folder / "spool")).replay(calls)
    assert [text for _, text in disks.messages if text.startswith("acked")] == [f"acked {name}" for name in GROUPS]
    assert sum(len(name.file.writes) for name in disks.names if name.file) > 100
    return disks


@pytest.mark.parametrize("cuts", [200, pytest.param(10_000, marks=pytest.mark.soak)])
def test_after_a_power_cut_everything_acknowledged_is_there_and_whole(
    disk: power_cut.Disk, tmp_path: Path, cuts: int, say: Say
) -> None:
    chance = random.Random(cuts)
    first = min(name.line for name in disk.names)
    fates: Counter[str] = Counter()
    acked = 0
    for _ in range(cuts):
        line = chance.randrange(first, disk.lines + 1)
        fate: power_cut.Fate = chance.choice(("none", "all", "some", "some"))
        folder = tmp_path / "spool"
        disk.after_a_cut(line, fate, chance, folder)
        try:
            acked += check(folder, {text for at, text in disk.messages if at < line})
        except AssertionError as error:
            raise AssertionError(
                f"the power went at line {line + 1}; of what was not synced {fate} is there"
            ) from error
        fates[fate] += 1
        shutil.rmtree(folder, ignore_errors=True)
    say(f"{cuts} power cuts of a spool, {dict(fates)} of what was not synced kept: {acked} groups acknowledged, 0 lost")


def check(folder: Path, acknowledged: set[str]) -> int:
    """Returns how many groups were acknowledged; of drained ones neither events nor bytes need to be there."""
    spool = Spool(folder)
    waiting = {event.event_id: event for event in spool.oldest(10**6, 10**9)}
    for name in GROUPS:
        events = group(0, name)
        if f"drained {name}" in acknowledged:
            for event in events:
                waiting.pop(event.event_id, None)
            continue
        present = {event.event_id in waiting for event in events}
        assert present == {True} or f"acked {name}" not in acknowledged, f"{name} was acknowledged and is lost"
        assert len(present) == 1, f"half of {name} is there"
        for event in events if present == {True} else ():
            stored = waiting.pop(event.event_id)
            assert (stored.row, stored.digest) == (event.row, event.digest)
            assert spool.data(stored) == event.data, f"a row of {name} without its bytes"
        assert (spool.receipt(name) is not None) == (present == {True})
    assert waiting == {}
    spool.close()
    return sum(text.startswith("acked") for text in acknowledged)
