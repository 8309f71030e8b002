"""Scenarios on a disk of a few megabytes, in a mount namespace of their own that ends with the process.

    python -m tests.crash.small_disk ingest|drains|works FOLDER COUNT

mounts a tmpfs on FOLDER and prints what it found as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lake import open_lake
from lake.spool.drain import drain
from lake.spool.spool import Spool
from tests.crash.faults import Subject
from tests.crash.http import Connection, get
from tests.crash.ledger import Findings, Ledger, compare
from tests.crash.service import Service

DISK_BYTES = 72 << 20
BALLAST_BYTES = 24 << 20
PICTURE_BYTES = 150_000
CLIENTS = 8
FULL_SECONDS = 2.0
RESERVE_GB = 0.008


def command(phase: str, folder: Path, count: int = 0) -> list[str]:
    """The command that runs a scenario, as root or as a user who may create namespaces."""
    flags = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    return ["unshare", *flags, sys.executable, "-m", "tests.crash.small_disk", phase, str(folder), str(count)]


def mount(folder: Path, size: int, remount: bool = False) -> None:
    options = f"size={size},huge=never" if not remount else f"remount,size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


# A service that fills its disk -----------------------------------------------------------------------------


async def ingest(folder: Path) -> dict[str, Any]:
    """Sends until every write is refused, reads, frees space, sends again; then the same with a reserve kept free."""
    mount(folder, DISK_BYTES)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    lake = folder / "lake"
    open_lake.create(str(lake))
    ledger = Ledger(seed=9, padding=PICTURE_BYTES)
    service = await Service(lake, ["--min-free-gb", "0"], forked=False).ready()
    results: dict[str, Any] = {}
    await some_drained(service, ledger)
    full = await fill(service, ledger)
    results["full"] = full.facts() | {"reads": await reads(service, ledger)}
    ballast.unlink()
    results["resumed_after"] = await resumed(service, ledger)
    await service.stop()
    results["code"] = service.process.returncode
    log = service.output()

    free = shutil.disk_usage(folder).free
    ballast.write_bytes(bytes(max(0, free - (4 << 20))))
    service = await Service(lake, ["--min-free-gb", str(RESERVE_GB)], forked=False).ready()
    stored = await fill(service, ledger, seconds=1.0)
    results["reserve"] = stored.facts() | {"reads": await reads(service, ledger)}
    mount(folder, 4 * DISK_BYTES, remount=True)
    results["resumed_after_reserve"] = await resumed(service, ledger)
    results["drained_after"] = await drained(service)
    await service.stop()
    results["said"] = log + service.output()
    opened = open_lake.open(str(lake))
    spool = Spool(lake / "spool")
    assert drain(opened, spool) is not None
    differences = compare(opened, spool, ledger)
    spool.close()
    results["findings"] = asdict(differences)
    results["wrong"] = ledger.wrong
    return results


async def some_drained(service: Service, ledger: Ledger) -> None:
    """A few pictures that are in the lake before the disk is full."""
    connection = Connection(service.port)
    for _ in range(5):
        request = ledger.new("image")
        ledger.take(request, await connection.ask(request.raw))
    while (await connection.get(f"/v1/thumbnails/{request.events[0].image_id}")).status != 200:
        await asyncio.sleep(0.05)
    await connection.close()


class Fill:
    """Responses to the clients while the disk fills. `slowest` is the longest wait for a refusal in seconds."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0
        self.bare_refusals = 0
        self.accepted_last = time.monotonic()
        self.refused_first: float | None = None

    def note(self, status: int, seconds: float, retry_after: str | None) -> None:
        self.statuses[status] += 1
        if status < 300:
            self.accepted_last = time.monotonic()
        else:
            self.refused_first = self.refused_first or time.monotonic()
            self.slowest = max(self.slowest, seconds)
            self.bare_refusals += retry_after is None

    def facts(self) -> dict[str, Any]:
        return {
            "statuses": {str(k): n for k, n in sorted(self.statuses.items())},
            "slowest_refusal": self.slowest,
            "refusals_without_retry_after": self.bare_refusals,
        }


async def fill(service: Service, ledger: Ledger, seconds: float = FULL_SECONDS) -> Fill:
    """Until nothing was accepted for `seconds`."""
    fill = Fill()

    async def client() -> None:
        connection = Connection(service.port)
        while time.monotonic() - fill.accepted_last < seconds:
            request = ledger.next()
            started = time.monotonic()
            answer = await connection.ask(request.raw)
            fill.note(answer.status, time.monotonic() - started, answer.headers.get("retry-after"))
            ledger.take(request, answer)
            if answer.status >= 400:
                await asyncio.sleep(0.1)
        await connection.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return fill


async def reads(service: Service, ledger: Ledger) -> dict[str, list[int]]:
    """Statuses of reads, while writes are refused."""
    events = ledger.some_acked(5)
    paths = {
        "status": ["/v1/status"],
        "predictions": [f"/v1/predictions/{event.event_id}" for event in events],
        "images": [f"/v1/images/{event.image_id}" for event in events],
        "health": ["/healthz", "/metrics"],
    }
    # A thumbnail is there once its image was drained.
    drained = open_lake.open(str(service.lake)).scan("thumbnails", ["image_id"])["image_id"].to_pylist()[:3]
    paths["thumbnails"] = [f"/v1/thumbnails/{image_id}" for image_id in drained]
    return {kind: [(await get(service.port, path)).status for path in urls] for kind, urls in paths.items()}


async def resumed(service: Service, ledger: Ledger, most: float = 15.0) -> float | None:
    """Seconds until a write is accepted again; then sends everything that was refused once more."""
    started = time.monotonic()
    connection = Connection(service.port)
    after = None
    while time.monotonic() - started < most and (after is None or ledger.waiting):
        request = ledger.next()
        answer = await connection.ask(request.raw)
        ledger.take(request, answer)
        if answer.status < 300 and after is None:
            after = time.monotonic() - started
        if answer.status >= 400:
            await asyncio.sleep(0.1)
    await connection.close()
    return after


async def drained(service: Service, most: float = 30.0) -> float | None:
    """Seconds until nothing waits in the spool any more; None when something still does."""
    started = time.monotonic()
    while time.monotonic() - started < most:
        if not (await get(service.port, "/v1/status")).json()["spool"]["events"]:
            return time.monotonic() - started
        await asyncio.sleep(0.2)
    return None


# A drain that runs out of disk -----------------------------------------------------------------------------


def drains(folder: Path, count: int) -> dict[str, Any]:
    """Drains at `count` points between no free space and enough of it."""
    mount(folder, 64 << 20)
    begin, ledger = folder / "begin", Ledger(seed=12)
    fill_spool(begin, ledger)
    target = folder / "target"
    kinds: Counter[str] = Counter()
    failures: list[str] = []
    with Subject("drains", folder) as subject:
        shutil.copytree(begin, target)
        before = used(folder)
        assert subject.run(target, None).drained
        need = used(folder) - before
        for number in range(count):
            shutil.rmtree(target)
            shutil.copytree(begin, target)
            left = (need * number // count) // 4096 * 4096
            outcome = subject.run(target, None, before=partial(_leave, folder, left))
            mount(folder, 64 << 20, remount=True)
            kinds.update({kind for _, kind, _ in outcome.failed} or {"none"})
            findings = finished(target, ledger)
            if findings.any or outcome.hung or outcome.code:
                failures.append(f"{left} bytes left: {outcome} {findings.details}")
    return {"points": count, "bytes_needed": need, "failed_with": dict(kinds), "failures": failures}


def fill_spool(lake: Path, ledger: Ledger) -> None:
    from tests.crash.test_kills import event_of

    open_lake.create(str(lake))
    spool = Spool(lake / "spool")
    while {kind for kind, _ in ledger.events} != {"prediction", "image", "feedback"}:
        request = ledger.next()
        spool.put([event_of(sent) for sent in request.events])
        ledger.acknowledge(request)
    spool.close()


def finished(lake: Path, ledger: Ledger) -> Findings:
    opened = open_lake.open(str(lake))
    spool = Spool(lake / "spool")
    assert drain(opened, spool) is not None
    findings = compare(opened, spool, ledger)
    spool.close()
    return findings


def _leave(folder: Path, left: int, _: object) -> None:
    mount(folder, used(folder) + left, True)


def used(folder: Path) -> int:
    disk = os.statvfs(folder)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize


def main(arguments: Sequence[str]) -> None:
    phase, folder, count = arguments[0], Path(arguments[1]), int(arguments[2])
    if phase == "works":
        mount(folder, 1 << 20)
        results: dict[str, Any] = {}
    else:
        results = asyncio.run(ingest(folder)) if phase == "ingest" else drains(folder, count)
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
