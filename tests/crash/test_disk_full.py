"""With a full disk, writes are refused at once, reads go on, and writes resume when there is space again."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Say
from tests.crash.service import ROOT
from tests.crash.small_disk import command


@functools.cache
def why_not() -> str | None:
    """Why no small disk can be mounted on this machine, or None."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    folder = ROOT / "tests" / "crash"  # covered for a moment, in a namespace that ends at once
    tried = subprocess.run(command("works", folder), cwd=ROOT, capture_output=True, text=True)
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else None


def tried(phase: str, folder: Path, count: int = 0) -> dict[str, Any]:
    if why_not():
        pytest.skip(f"a small disk cannot be mounted here: {why_not()}")
    disk = folder / "disk"
    disk.mkdir()
    done = subprocess.run(command(phase, disk, count), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def test_a_full_disk_refuses_writes_serves_reads_and_resumes(tmp_path: Path, say: Say) -> None:
    """First full to the last byte, then down to the reserve that --min-free-gb keeps."""
    results = tried("ingest", tmp_path)
    for phase in ("full", "reserve"):
        state = results[phase]
        assert set(state["statuses"]) <= {"200", "201", "503", "507"}
        assert state["statuses"]["507"] > 0
        assert state["slowest_refusal"] < 10.0
        assert state["refusals_without_retry_after"] == 0
        assert all(statuses and set(statuses) == {200} for statuses in state["reads"].values()), state["reads"]
    assert results["full"]["statuses"]["201"] > 20
    assert results["resumed_after"] < 15.0
    assert results["resumed_after_reserve"] < 15.0
    assert results["drained_after"] is not None
    assert results["wrong"] == []
    findings = results["findings"]
    say(
        f"disk full: {findings['acked']} events acknowledged, {findings['lost']} lost; refused within "
        f"{results['full']['slowest_refusal']:.2f} s, resumed after {results['resumed_after']:.2f} s, "
        f"{results['resumed_after_reserve']:.2f} s with a reserve"
    )
    assert not any(findings[name] for name in ("lost", "duplicates", "torn", "strangers", "left")), findings
    assert "Traceback" not in results["said"], results["said"]
    assert results["code"] == 0


@pytest.mark.parametrize("count", [3, pytest.param(100, marks=pytest.mark.soak)])
def test_a_drain_that_runs_out_of_disk_is_completed_by_the_next(tmp_path: Path, count: int, say: Say) -> None:
    """Drains with no space at all up to almost enough, so that each write is the failing one once."""
    results = tried("drains", tmp_path, count)
    say(
        f"drains that ran out of disk: {count} points, {results['failed_with']}, {len(results['failures'])} with a loss"
    )
    assert results["failures"] == []
    assert set(results["failed_with"]) <= {"LakeloopError", "OSError", "OperationalError", "none"}
