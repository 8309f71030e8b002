"""The kill test: kills a real service under load at random moments, sends everything again, and compares at the end.

One campaign is one lake and one server at a time. Clients send (`ledger.py`); after a kill they send again what was
not answered, with the same ids. Kills fall on the server alone (its drainer then sees its stdin end), on the whole
process group, on the drainer alone (the server starts another), and at chosen times: while a drain runs, while the
lake is being maintained, and before the server answers at all.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lake import open_lake
from lake.spool.drain import drain
from lake.spool.spool import Spool
from tests.crash.http import Connection, Cut
from tests.crash.ledger import Findings, Ledger, compare
from tests.crash.service import ROOT, Service, alive, holder, wait_until_held
from tests.crash.spoiled import spoil

CLIENTS = 8
LOAD_SECONDS = 0.4
# A deck of moments is shuffled and dealt: each of them has its share whatever the number of kills.
DECK = ("group", "group", "group", "server", "server", "draining", "draining", "maintaining", "starting", "drainer")
# The only one that leaves the server alive.
DRAINER = "drainer"
# Between the requests of each client, where a test has to be cheap: still several in flight at every moment.
PAUSE_SECONDS = 0.01
MAINTAINER = """
import sys, time
from lake import open_lake
from lake.upkeep import maintenance
from lake.errors import LakeBusy
opened = open_lake.open(sys.argv[1])
print("ready", flush=True)
while True:
    try:
        maintenance.maintain(opened)
    except LakeBusy:
        time.sleep(0.01)
"""


@dataclass
class Tally:
    """What happened. `kills` are those of the server; those of the drainer alone are counted apart."""

    kills: int = 0
    drainer_kills: int = 0
    damages: int = 0
    spoiled_rows: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    mid_drain: int = 0
    requests: int = 0
    retried_events: int = 0
    retried_known: int = 0
    cutting_kills: int = 0
    storing_kills: int = 0
    reads: int = 0
    findings: Findings = field(default_factory=Findings)
    wrong: list[str] = field(default_factory=list)
    start_seconds: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        return self.findings.any or bool(self.wrong)

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            if isinstance(value, int):
                setattr(self, name, getattr(self, name) + value)
        self.moments.update(other.moments)
        self.findings.add(other.findings)
        self.wrong += other.wrong
        self.start_seconds += other.start_seconds
        self.seconds = max(self.seconds, other.seconds)

    def sentence(self) -> str:
        """The counts, for the end of a test."""
        f = self.findings
        return (
            f"{self.kills} kills of the service ({self.mid_drain} of them during a drain), {self.drainer_kills} of its "
            f"drainer, {f.acked} events acknowledged: {f.lost} lost, {f.duplicates} doubled, {f.torn} torn; "
            f"{self.storing_kills} of {self.cutting_kills} kills that cut a request left one stored unacknowledged "
            f"({self.retried_known} of {self.retried_events} events sent again); {self.seconds:.0f} s"
        )

    def figures(self) -> dict[str, Any]:
        """For people and for JSON."""
        share = self.retried_known / self.retried_events if self.retried_events else 0.0
        f = self.findings
        return {
            "kills of the server": self.kills,
            "kills of the drainer alone": self.drainer_kills,
            "kills in the middle of a drain": self.mid_drain,
            "files damaged between kills, and the lake repaired": self.damages,
            "rows in them": self.spoiled_rows,
            "moments": dict(sorted(self.moments.items())),
            "requests answered": self.requests,
            "events acknowledged": f.acked,
            "events sent again": self.retried_events,
            "of those stored before, unacknowledged": round(share, 3),
            "kills that cut a request": self.cutting_kills,
            "of those, with one stored and unacknowledged": self.storing_kills,
            "acknowledged answers read back after a restart": self.reads,
            "lost": f.lost,
            "duplicates": f.duplicates,
            "torn": f.torn,
            "never sent": f.strangers,
            "left in the spool": f.left,
            "wrong answers": len(self.wrong),
            "details": f.details + self.wrong[:20],
            "median seconds to start": round(sorted(self.start_seconds)[len(self.start_seconds) // 2], 2)
            if self.start_seconds
            else None,
            "seconds": round(self.seconds, 1),
        }


class Load:
    """Clients that send until the test stops them or the server is gone. With `retries_only` nothing new is sent.

    Each waits for `pause` seconds after an answer.
    """

    def __init__(
        self, ledger: Ledger, port: int, clients: int = CLIENTS, retries_only: bool = False, pause: float = 0.0
    ) -> None:
        self.ledger = ledger
        self._pause = pause
        self.begun = 0  # answers that were cut in their middle
        self._over = False
        self._only = retries_only
        self._tasks = [asyncio.create_task(self._client(port)) for _ in range(clients)]

    async def _client(self, port: int) -> None:
        connection = Connection(port)
        while not self._over and (self.ledger.waiting or not self._only):
            request = self.ledger.next()
            try:
                answer = await connection.ask(request.raw)
            except Cut as cut:
                self.begun += cut.begun
                if request.first_answer is None:
                    self.ledger.unanswered(request)
                break
            self.ledger.take(request, answer)
            await asyncio.sleep(0.05 if answer.status >= 400 else self._pause)
        await connection.close()

    async def finish(self) -> None:
        """Waits for the responses to the requests in flight."""
        self._over = True
        await self.ended()

    async def ended(self) -> None:
        """Waits until the clients have found out that the server is gone, or that nothing is left to send."""
        await asyncio.gather(*self._tasks)


class Campaign:
    """The lives of one server. Not `alone`: other servers share its lake and spool, and live on."""

    def __init__(self, lake: Path, seed: int, alone: bool = True, forked: bool = False, damage: int = 0) -> None:
        self.lake = lake
        self.alone = alone
        self.forked = forked
        self.damage = damage  # a file after so many kills; 0: never
        self.ledger = Ledger(seed)
        self.tally = Tally()
        self._random = random.Random(seed)
        self._deck: list[str] = []

    async def live(self, kills: int) -> None:
        """Lives until the server was killed `kills` times, then one that ends as it should."""
        started = time.monotonic()
        while self.tally.kills < kills:
            await self._one_life()
            if self.damage and self.tally.kills % self.damage == 0:
                rows = await asyncio.to_thread(spoil, self.lake, self._random)
                self.ledger.spoiled |= rows
                self.tally.damages += 1
                self.tally.spoiled_rows += len(rows)
        await self.settle()
        self.tally.seconds = time.monotonic() - started
        ledger = self.ledger
        self.tally.wrong += ledger.wrong
        self.tally.requests = ledger.answered
        self.tally.retried_events = ledger.retried_events
        self.tally.retried_known = ledger.retried_known
        self.tally.cutting_kills = len(ledger.cut_in)
        self.tally.storing_kills = len(ledger.stored_in)

    async def settle(self) -> None:
        """One undisturbed life: sends unanswered requests again, then stops the server."""
        service = await self._started()
        await self._read_back(service)
        while self.ledger.waiting:
            await Load(self.ledger, service.port, retries_only=True).ended()
        await service.stop()
        if service.process.returncode != 0:
            self.tally.wrong.append(f"the server ended with {service.process.returncode}: {service.output()[-500:]}")

    async def _one_life(self) -> None:
        moment = self._dealt()
        self.tally.moments[moment] += 1
        if moment == "starting":
            service = Service(self.lake, forked=self.forked)
            await asyncio.sleep(self._random.uniform(0, max(self.tally.start_seconds, default=2.0)))
            self._kill(service)
            return
        maintainer = self._maintainer() if moment == "maintaining" else None
        service = await self._started()
        await self._read_back(service)
        load = Load(self.ledger, service.port, pause=PAUSE_SECONDS if self.forked else 0.0)
        if moment == DRAINER:
            await self._kill_drainer(service)
            if service.drainer() is None:
                self.tally.wrong.append(f"the server did not start another drainer: {service.output()[-500:]}")
            moment = "group"
        if moment == "draining":
            await self._in_a_drain()
        elif maintainer is not None:
            assert maintainer.stdout is not None
            await asyncio.to_thread(maintainer.stdout.readline)
            await asyncio.sleep(self._random.uniform(0, LOAD_SECONDS))
            maintainer.kill()
        else:
            await asyncio.sleep(self._random.uniform(0, LOAD_SECONDS))
        drainer = service.drainer() if moment == "server" else None
        self._kill(service, whole_group=moment != "server")
        if maintainer is not None:
            maintainer.communicate()
        await load.ended()
        if drainer is not None and not await _gone(drainer, 30.0):
            self.tally.wrong.append("a drainer lives on without its server")

    async def _in_a_drain(self) -> None:
        """Waits for a moment of a drain, at most 0.15 s after its beginning unless the drains are shorter."""
        lock = self.lake / "spool" / "drain.lock"
        for _ in range(20):
            await wait_until_held(lock, 6.0)
            await asyncio.sleep(self._random.uniform(0, 0.15))
            if holder(lock) is not None:
                return

    async def _kill_drainer(self, service: Service) -> None:
        pid = None
        for _ in range(1_000):
            pid = service.drainer()
            if pid is not None:
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(self._random.uniform(0, 2.0))
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.tally.drainer_kills += 1
        for _ in range(500):
            if service.drainer() not in (None, pid):
                return
            await asyncio.sleep(0.01)

    def _kill(self, service: Service, whole_group: bool = True) -> None:
        if self.alone:  # else it may be another's drainer
            self.tally.mid_drain += holder(self.lake / "spool" / "drain.lock") is not None
        service.kill(whole_group)
        self.tally.kills += 1
        self.ledger.life += 1

    async def _started(self) -> Service:
        service = await Service(self.lake, forked=self.forked).ready()
        self.tally.start_seconds.append(time.monotonic() - service.began)
        return service

    async def _read_back(self, service: Service) -> None:
        """What was acknowledged is there at once after a restart, drained or not."""
        connection = Connection(service.port)
        for event in self.ledger.some_acked(3):
            answer = await connection.get(f"/v1/predictions/{event.event_id}")
            if answer.status != 200 or answer.json()["label"] != event.says["label"]:
                self.tally.wrong.append(f"after a restart {event.event_id} is {answer.status} {answer.body[:200]!r}")
            image = await connection.get(f"/v1/images/{event.image_id}")
            if image.status != 200 or (event.data is not None and image.body != event.data):
                self.tally.wrong.append(f"after a restart the image of {event.event_id} is {image.status}")
            self.tally.reads += 1
        await connection.close()

    def _maintainer(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", MAINTAINER, str(self.lake)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)

    def _dealt(self) -> str:
        if not self._deck:
            self._deck = list(DECK)
            self._random.shuffle(self._deck)
        return self._deck.pop()


async def _gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def compared(lake: Path, ledgers: Sequence[Ledger]) -> Findings:
    """Drains what is left in a lake's spool and compares."""
    opened = open_lake.open(str(lake))
    spool = Spool(lake / "spool")
    try:
        if drain(opened, spool) is None:
            return Findings(left=1, details=["another process still drains after the server's end"])
        return compare(opened, spool, *ledgers)
    finally:
        spool.close()


async def campaigns(
    folder: Path, kills: int, seed: int, lanes: int = 2, one_lake: bool = False, forked: bool = False, damage: int = 0
) -> Tally:
    """`kills` kills in all, on `lanes` servers at a time, each with a lake of its own or all with one and its spool.

    `damage`: after so many kills of a server, a file of its lake is damaged and the lake repaired; 0: never. Most of a
    life is a start, which keeps one core busy; less with `forked` servers.
    """
    lakes = [folder / f"lane{0 if one_lake else lane}.lake" for lane in range(lanes)]
    for lake in dict.fromkeys(lakes):
        await asyncio.to_thread(open_lake.create, str(lake))
    running = [Campaign(lake, seed + lane, not one_lake, forked, damage) for lane, lake in enumerate(lakes)]
    shares = [kills // lanes + (lane < kills % lanes) for lane in range(lanes)]
    await asyncio.gather(*(campaign.live(share) for campaign, share in zip(running, shares, strict=True)))
    total = Tally()
    for campaign in running:
        total.add(campaign.tally)
    for lake in dict.fromkeys(lakes):
        ledgers = [campaign.ledger for campaign in running if campaign.lake == lake]
        total.findings.add(await asyncio.to_thread(compared, lake, ledgers))
    return total
