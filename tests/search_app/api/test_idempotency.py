"""Idempotency-Key: the same key and request get the same response; tested with generated sequences.

For seven days: the same key and request are answered as the first time, another request under the key 422, one that
comes while the first is in flight 409. Callers' keys are apart, and a restart forgets nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from starlette.types import Receive, Scope, Send

from lake.open_lake import OpenLake
from lake.spool import journal
from search_app.api.app import Api
from search_app.server.live_ingest import IngestSettings, LiveIngest
from tests.conftest import Say
from tests.search_app.api_client import JSON, NDJSON, PROBLEM, in_base64, picture
from tests.search_app.asgi import Answer, ask

pytestmark = pytest.mark.slow

WHICH = st.integers(0, 11)
KEYS = ("order-1", "order-2", "~" * 190)
CALLERS = (None, "ka", "kb")
IMAGES = [picture(seed) for seed in range(3)]


class Bench:
    """One lake and spool for all sequences; requests are made on a loop of its own. Each sequence has its own ids."""

    def __init__(self, lake: OpenLake, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.lake = lake
        self.settings = IngestSettings(folder, drain=False)
        self.numbers = itertools.count()
        self.counts = dict.fromkeys(
            ("sequences", "requests", "repeats", "others", "in flight", "restarts", "drains"), 0
        )
        self.open()

    def open(self) -> None:
        self.spool = LiveIngest(self.lake.uri, self.settings)
        self.api = Api(self.lake, self.spool)

    def restart(self) -> None:
        self.spool.spool.close()
        self.open()

    def close(self) -> None:
        self.spool.spool.close()
        self.loop.close()

    async def post(self, request: Request, key: str, caller: str | None) -> Answer:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["lakeloop_key_id"] = caller
            await self.api(scope, receive, send)

        path, headers, body = request
        return await ask(app, "POST", path, [*headers.items(), ("Idempotency-Key", key)], body)


Request = tuple[str, dict[str, str], bytes]


def requests(number: int) -> list[Request]:
    """What one sequence may ask, good and bad, some of it contradicting the rest. No two are the same request."""

    def own(name: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{number} {name}"))

    answer: dict[str, Any] = {"prediction_id": own("p"), "model": "m", "label": "a"}
    items = [json.dumps(answer | {"prediction_id": own(f"b{i}"), "image_base64": in_base64(IMAGES[i])}) for i in (0, 1)]
    verdict = {"prediction_id": own("p"), "verdict": "correct"}

    def image(payload: dict[str, Any], which: int) -> Request:
        header = {"Content-Type": "image/png", "Lakeloop-Event": json.dumps(payload)}
        return "/v1/predictions", header, IMAGES[which]

    return [
        image(answer, 0),
        image(answer, 1),  # contradicts the first
        image({"model": "m", "label": "no id of its own"}, 0),
        image({"model": "m"}, 0),  # refused
        ("/v1/predictions/batch", NDJSON, "\n".join([*items, "{"]).encode()),
        ("/v1/predictions/batch", NDJSON, items[0].encode()),
        ("/v1/predictions/batch", NDJSON, b"\n"),  # refused
        ("/v1/images", {"Content-Type": "image/png"}, picture(number + 10)),
        ("/v1/images", {"Content-Type": "image/webp"}, picture(number + 10)),
        ("/v1/feedback", JSON, json.dumps(verdict).encode()),  # 404 before the answer is there
        ("/v1/feedback", JSON, json.dumps(verdict | {"comment": "well"}).encode()),
        ("/v1/feedback", JSON, json.dumps(verdict | {"verdict": "maybe"}).encode()),  # refused
    ]


class Contract(RuleBasedStateMachine):
    """Any order of requests, restarts and drains, against a dictionary of what was answered."""

    bench: Bench

    @initialize()
    def begin(self) -> None:
        self.number = next(self.bench.numbers)
        self.requests = requests(self.number)
        self.given: dict[tuple[str | None, str], tuple[int, Answer]] = {}
        self.bench.counts["sequences"] += 1

    @rule(which=WHICH, key=st.sampled_from(KEYS), caller=st.sampled_from(CALLERS))
    def ask(self, which: int, key: str, caller: str | None) -> None:
        self.bench.counts["requests"] += 1
        self.check(which, key, caller, self.run(self.sent(which, key, caller)))

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The same again."""
        caller, key = data.draw(st.sampled_from(sorted(self.given, key=str)))
        which = self.given[caller, key][0]
        self.bench.counts["repeats"] += 1
        self.check(which, key, caller, self.run(self.sent(which, key, caller)))

    @rule(which=WHICH, other=st.none() | WHICH, caller=st.sampled_from(CALLERS))
    def ask_twice_at_once(self, which: int, other: int | None, caller: str | None) -> None:
        """The disk takes its time; meanwhile the client asks again, the same or another."""
        key = f"slow-{len(self.given)}"
        if (caller, key) in self.given:
            return
        other = which if other is None else other
        first, second = self.run(self.overlapping(which, other, key, caller))
        if second is None:  # the first was refused without waiting for the disk
            assert first.status >= 400 or first.json.get("status") == "known"
        elif second.status == 409:
            assert which == other
            self.bench.counts["in flight"] += 1
        else:
            assert second.status in (422, 404)
            assert which != other
        self.note(which, key, caller, first)

    @rule(restarted=st.booleans(), drained=st.booleans())
    def interrupt(self, restarted: bool, drained: bool) -> None:
        """A drain, as far as the spool is concerned: what waits is remembered by its ids alone."""
        box = self.bench.spool.spool
        if drained:
            self.bench.counts["drains"] += 1
            box.forget(box.oldest(1_000, 1 << 30))
        if restarted:
            self.bench.counts["restarts"] += 1
            self.bench.restart()

    def run(self, work: Any) -> Any:
        return self.bench.loop.run_until_complete(work)

    def sent(self, which: int, key: str, caller: str | None) -> Any:
        return self.bench.post(self.requests[which], f"{self.number}-{key}", caller)

    async def overlapping(self, which: int, other: int, key: str, caller: str | None) -> tuple[Answer, Answer | None]:
        writer = sqlite3.connect(self.bench.settings.spool / "spool.sqlite", isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        try:
            first = asyncio.ensure_future(self.sent(which, key, caller))
            service = self.bench.api.service
            while not first.done() and not service._in_flight:
                await asyncio.sleep(0.0005)
            second = None if first.done() else await self.sent(other, key, caller)
        finally:
            writer.execute("ROLLBACK")
            writer.close()
        return await first, second

    def check(self, which: int, key: str, caller: str | None, answer: Answer) -> None:
        before = self.given.get((caller, key))
        if before is None:
            self.note(which, key, caller, answer)
        elif before[0] == which:
            assert (answer.status, answer.body) == (before[1].status, before[1].body)
            assert answer.headers["content-type"] == before[1].headers["content-type"]
        else:
            self.bench.counts["others"] += 1
            # What is refused for itself is refused before its key is looked at.
            assert answer.status in (404, 422)
            assert answer.json["reason"] in ("other_request", "invalid", "empty", "unknown_prediction")

    def note(self, which: int, key: str, caller: str | None, answer: Answer) -> None:
        """A response to a stored or contradicting request is kept for good; a refused request may be sent again."""
        assert answer.status in (200, 201, 404, 422), answer.body
        if answer.status < 400 or answer.json["reason"] == "contradiction":
            self.given[caller, key] = which, answer
        else:
            assert answer.json["reason"] in ("invalid", "empty", "unknown_prediction")


@pytest.fixture
def bench(lk: OpenLake, tmp_path: Path) -> Iterator[Bench]:
    bench_ = Bench(lk, tmp_path / "spool")
    yield bench_
    bench_.close()


def _run(bench: Bench, sequences: int, say: Say) -> None:
    machine = type("Contract", (Contract,), {"bench": bench})
    settings = hypothesis.settings(max_examples=sequences, stateful_step_count=14)
    started = time.monotonic()
    run_state_machine_as_test(machine, settings=settings)
    say(f"Idempotency-Key: {bench.counts}, 0 violations, {time.monotonic() - started:.0f} s")
    assert bench.counts["sequences"] >= sequences
    assert min(bench.counts.values()) > sequences / 10


def test_any_sequence_keeps_the_contract(bench: Bench, say: Say) -> None:
    _run(bench, 30, say)


@pytest.mark.soak
def test_ten_thousand_sequences_keep_the_contract(bench: Bench, say: Say) -> None:
    _run(bench, 10_000, say)


def test_a_key_is_forgotten_after_seven_days(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = requests(0)[2], requests(1)[7]

    def ask(request: Request) -> Answer:
        return bench.loop.run_until_complete(bench.post(request, "week", None))

    answer = ask(first)
    moment = time.time()
    monkeypatch.setattr(time, "time", lambda: moment + journal.REMEMBERED_SECONDS - 60)
    assert ask(first).body == answer.body
    assert ask(other).json["reason"] == "other_request"
    monkeypatch.setattr(time, "time", lambda: moment + journal.REMEMBERED_SECONDS + 60)
    assert ask(other).status == 201
    assert ask(first).json["reason"] == "other_request"


def test_two_servers_on_one_spool_give_one_response(bench: Bench) -> None:
    """A client that timed out at one server asks the other, while the first still waits for the disk."""
    first, other = Bench(bench.lake, bench.settings.spool), Bench(bench.lake, bench.settings.spool)
    without_id, another = requests(1)[2], requests(1)[0]

    async def at_once() -> list[Answer]:
        writer = sqlite3.connect(bench.settings.spool / "spool.sqlite", isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        calls = [server.post(request, "k", None) for server, request in
                 ((first, without_id), (other, without_id))]  # fmt: skip
        started = [asyncio.ensure_future(call) for call in calls]
        while not (first.api.service._in_flight and other.api.service._in_flight):
            await asyncio.sleep(0.001)
        writer.execute("ROLLBACK")
        writer.close()
        return [await call for call in started]

    response, other_response = bench.loop.run_until_complete(at_once())
    assert (response.status, response.body) == (other_response.status, other_response.body)
    assert response.status == 201
    assert first.spool.spool.depth().events == 1
    refused = bench.loop.run_until_complete(other.post(another, "k", None))
    assert refused.json["reason"] == "other_request"
    first.close()
    other.close()


def test_a_repeat_gets_the_response_that_an_earlier_release_kept(bench: Bench) -> None:
    """Before version 1 of the spool's tables a receipt held the status and body of the response."""
    image, contradicting, without_id, _, batch, *_, upload, _, feedback, _, _ = requests(0)
    verdict = {"prediction_id": json.loads(image[1]["Lakeloop-Event"])["prediction_id"], "event_id": str(uuid.uuid4())}
    verdicts = [("/v1/feedback", JSON, json.dumps({**verdict, "verdict": v}).encode()) for v in ("correct", "unsure")]
    sent = [image, contradicting, without_id, batch, upload, feedback, *verdicts]

    def ask(number: int) -> Answer:
        return bench.loop.run_until_complete(bench.post(sent[number], str(number), None))

    answers = [ask(number) for number in range(len(sent))]
    assert [a.status for a in answers] == [201, 422, 201, 200, 201, 201, 201, 422]
    bench.spool.spool.close()
    _write_old_receipts(bench.settings.spool / "spool.sqlite", answers)
    bench.open()
    assert [(a.status, a.body) for a in map(ask, range(len(sent)))] == [(a.status, a.body) for a in answers]
    assert [ask(7).headers["content-type"], ask(0).headers["content-type"]] == [PROBLEM, "application/json"]
    assert bench.spool.spool.depth().events == 7


def _write_old_receipts(file: Path, answers: list[Answer]) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        rows = database.execute("SELECT key, digest, at FROM receipts").fetchall()
        database.execute("DROP TABLE receipts")
        database.execute(
            "CREATE TABLE receipts(key TEXT PRIMARY KEY, digest BLOB NOT NULL, status INTEGER NOT NULL,"
            " body BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID"
        )
        database.execute("CREATE INDEX receipts_by_time ON receipts(at)")
        for key, digest, at in rows:
            answer = answers[int(key)]
            database.execute("INSERT INTO receipts VALUES(?,?,?,?,?)", (key, digest, answer.status, answer.body, at))
        database.execute("PRAGMA user_version=0")
