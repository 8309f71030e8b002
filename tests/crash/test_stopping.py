"""SIGTERM under load: not ready any more at once, what was taken in is answered, the process ends well and soon."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lake import open_lake
from lake.spool.spool import Spool
from tests.conftest import MakeLake, Say
from tests.crash.http import Cut, get
from tests.crash.kills import Load, compared
from tests.crash.ledger import Ledger
from tests.crash.service import Service

CONNECTIONS = 64
# Uploads of which half was sent when the signal comes, and the rest so much later.
SLOW = 4
SLOW_SECONDS = 0.7
PICTURE_BYTES = 60_000
END_SECONDS = 10.0
# 100 ms is the promise; a shared machine may keep a process waiting longer.
UNREADY_SECONDS = 0.5


@dataclass
class Stops:
    """Totals of all rounds. `ready_after`: seconds after SIGTERM at which /readyz last returned `ready`."""

    answered: int = 0
    cut: int = 0
    cut_begun: int = 0
    cut_stored: int = 0
    slow_answered: int = 0
    slowest: float = 0.0
    ready_after: float = 0.0
    codes: set[int | None] = field(default_factory=set)
    output: str = ""


@pytest.mark.parametrize("rounds", [1, pytest.param(100, marks=pytest.mark.soak)])
def test_sigterm_under_load_cuts_no_answer_to_what_was_stored(make_lake: MakeLake, rounds: int, say: Say) -> None:
    lake = Path(make_lake().uri)
    ledger = Ledger(seed=rounds, padding=PICTURE_BYTES)
    stops = asyncio.run(stopped(lake, ledger, rounds))
    say(
        f"{rounds} SIGTERMs under {CONNECTIONS} uploading connections: {stops.answered} requests answered, {stops.cut} "
        f"cut, {stops.cut_stored} of them stored; {stops.slow_answered} of {rounds * SLOW} half sent ones finished; "
        f"ended within {stops.slowest:.1f} s; still ready at most {1000 * stops.ready_after:.0f} ms"
    )
    assert stops.codes == {0}
    assert stops.slowest < END_SECONDS
    assert stops.cut_begun == 0, "an answer was cut in its middle"
    assert stops.cut_stored == 0, "what a request sent was stored, and nobody was told"
    assert stops.slow_answered == rounds * SLOW, "a request in flight was not finished"
    if rounds > 1:
        assert stops.ready_after < UNREADY_SECONDS
    assert "Traceback" not in stops.output, stops.output
    assert ledger.wrong == []
    findings = compared(lake, [ledger])
    assert not findings.any, findings.details


async def stopped(lake: Path, ledger: Ledger, rounds: int) -> Stops:
    stops = Stops()
    chance = random.Random(rounds)
    for _ in range(rounds):
        service = await Service(lake).ready()
        signalled = asyncio.Event()
        slow = [asyncio.create_task(half_sent(service, ledger, signalled)) for _ in range(SLOW)]
        await asyncio.sleep(0.3)
        await get(service.port, "/healthz")  # the server has their beginnings: they came before
        load = Load(ledger, service.port, CONNECTIONS)
        await asyncio.sleep(chance.uniform(0.3, 1.0))
        signalled.set()
        watch = asyncio.create_task(watched(service))
        stops.slowest = max(stops.slowest, await service.stop())
        stops.ready_after = max(stops.ready_after, await watch)
        await load.ended()
        stops.slow_answered += sum(await asyncio.gather(*slow))
        stops.codes.add(service.process.returncode)
        stops.cut += len(ledger.waiting)
        stops.cut_begun += load.begun
        stops.cut_stored += await asyncio.to_thread(stored, lake, ledger)
        stops.output += service.output()
    stops.answered = ledger.answered
    return stops


async def half_sent(service: Service, ledger: Ledger, signalled: asyncio.Event) -> bool:
    """Sends half of an upload and, some time after the signal, the rest; whether it was answered."""
    request = ledger.new("prediction")
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    half = len(request.raw) // 2
    try:
        writer.write(request.raw[:half])
        await signalled.wait()
        await asyncio.sleep(SLOW_SECONDS)
        writer.write(request.raw[half:])
        response = await reader.readline()
    except OSError:
        response = b""
    finally:
        writer.close()
    if not response.startswith(b"HTTP/1.1 201"):
        ledger.unanswered(request)
        return False
    ledger.acknowledge(request)
    return True


async def watched(service: Service) -> float:
    """Requests readiness until the server is gone; seconds from now to the last request that got `ready`."""
    began = time.monotonic()
    last = began
    while True:
        requested_at = time.monotonic()
        try:
            status = (await get(service.port, "/readyz")).status
        except Cut:
            return last - began
        assert status in (200, 503)
        if status == 200:
            last = requested_at
        await asyncio.sleep(0.005)


def stored(lake: Path, ledger: Ledger) -> int:
    """The number of requests without a response that were stored."""
    spool = Spool(lake / "spool")
    opened = open_lake.open(str(lake))
    events = [e for request in ledger.waiting for e in request.events if not e.acked and e.kind == "prediction"]
    known = opened.known("samples", "prediction_id", [e.event_id for e in events])
    count = sum(e.event_id in known or spool.event("prediction", e.event_id) is not None for e in events)
    spool.close()
    return count
