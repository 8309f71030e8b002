"""The client loses nothing it can keep, says what it cannot, and never holds up whoever calls it."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import email.utils
import inspect
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lake.client import AsyncClient, Client, Refusal, core, delivery, events, sender
from lake.client.events import QueuedEvent, Unfit
from lake.client.model_requests import ModelRequests, NotAnswered
from lake.client.predictions import read_prediction
from lake.client.spill import Spill, SpillFull
from tests import pictures
from tests.conftest import MakeLake
from tests.lake.ledger import CLOSE, CUT_AFTER, CUT_BEFORE, GARBAGE, HANG, Ledger, Say

IMAGE = b"\x89PNG not really"
LONG = 20.0  # seconds; only reached when something is wrong

MakeClient = Callable[..., Client]


@pytest.fixture
def server() -> Iterator[Ledger]:
    ledger = Ledger().up()
    yield ledger
    ledger.down()


@pytest.fixture
def spill(tmp_path: Path) -> Path:
    return tmp_path / "spill"


@pytest.fixture
def make_client(server: Ledger, spill: Path, request: pytest.FixtureRequest) -> MakeClient:
    """make_client(**options) -> a client of `server` in a hurry: milliseconds where production takes seconds."""

    def make(**options: Any) -> Client:
        client = Client(
            server.url, **{"spill": spill, "linger": 0.01, "longest_pause": 0.05, "timeout": 5.0, **options}
        )
        request.addfinalizer(lambda: client.close(0.0))
        return client

    return make


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def log_many(client: Client, count: int, size: int = 1000, **fields: Any) -> list[str]:
    return [client.log(os.urandom(size), model="cells", label=f"c{i % 3}", number=i, **fields) for i in range(count)]


# What arrives ------------------------------------------------------------------------------------------------------


def test_a_prediction_arrives_as_it_was_logged(server: Ledger, make_client: MakeClient) -> None:
    client = make_client(key="ll_k_s")
    before = dt.datetime.now(dt.UTC)
    own = client.log(IMAGE, model="cells", model_version="3", label="cracked", confidence=0.9, latency_ms=4.5, line="B")
    assert client.flush(LONG)
    sent = server.predictions[own]
    assert before <= dt.datetime.fromisoformat(sent.pop("timestamp")) <= dt.datetime.now(dt.UTC)
    assert sent == {
        "prediction_id": own, "model": "cells", "model_version": "3", "label": "cracked", "confidence": 0.9,
        "latency_ms": 4.5, "image": IMAGE, "metadata": {"line": "B"},
    }  # fmt: skip
    assert server.requests[0].headers["Authorization"] == "Bearer ll_k_s"
    assert client.stats() == core.Stats(0, 1, 0, 0, 0, 0, 0, None)


def test_values_of_numpy_and_others_arrive_as_json(server: Ledger, make_client: MakeClient) -> None:
    class Shift(Enum):
        NIGHT = "night"

    client = make_client()
    own = client.log(
        IMAGE,
        model="cells",
        confidence=np.float32(0.5),  # type: ignore[arg-type]
        scores={"a": np.float64(0.25), "b": float("nan")},
        boxes=np.array([[1, 2], [3, 4]]),
        timestamp=dt.datetime(2026, 11, 1, 12),
        metadata={"given": 1},
        shift=Shift.NIGHT,
        path=Path("/a/b"),
        day=dt.date(2026, 11, 1),
        several=(1, {2}),
        text="Zürich \ud800",
    )
    assert client.flush(LONG)
    sent = server.predictions[own]
    assert (sent["confidence"], sent["scores"], sent["boxes"]) == (0.5, {"a": 0.25, "b": None}, [[1, 2], [3, 4]])
    assert sent["timestamp"] == "2026-11-01T12:00:00+00:00"
    assert sent["metadata"] == {
        "given": 1, "shift": "Shift.NIGHT", "path": "/a/b", "day": "2026-11-01", "several": [1, [2]],
        "text": "Zürich \ud800",
    }  # fmt: skip


def test_what_the_caller_changes_afterwards_changes_nothing(
    server: Ledger, make_client: MakeClient, tmp_path: Path
) -> None:
    client = make_client(linger=0.2)
    scores, pixels, file = {"a": 0.5}, bytearray(b"first"), tmp_path / "image.png"
    file.write_bytes(b"on disk")
    by_value = client.log(pixels, model="m", scores=scores)
    by_path = client.log(file, model="m", label="x")
    scores["a"], pixels[:] = 0.1, b"other"
    file.unlink()
    assert client.flush(LONG)
    assert (server.predictions[by_value]["scores"], server.predictions[by_value]["image"]) == ({"a": 0.5}, b"first")
    assert server.predictions[by_path]["image"] == b"on disk"


def test_the_same_id_is_stored_once(server: Ledger, make_client: MakeClient) -> None:
    client = make_client()
    own, moment = uuid.uuid4(), dt.datetime.now(dt.UTC)
    for _ in range(2):
        assert client.log(IMAGE, model="m", label="x", prediction_id=own, timestamp=moment) == str(own)
        assert client.flush(LONG)
    assert (client.stats().sent, client.stats().known) == (1, 1)
    assert list(server.predictions) == [str(own)]


def test_batches_are_bounded_by_events_and_bytes(server: Ledger, make_client: MakeClient) -> None:
    client = make_client(batch_events=10, batch_bytes=20_000, linger=5.0)
    log_many(client, 40, size=10)
    log_many(client, 10, size=6_000)
    log_many(client, 1, size=50_000)
    assert client.flush(LONG)
    assert len(server.predictions) == 51
    assert max(len(r.events) for r in server.requests) == 10
    assert [r.bytes > 20_000 for r in server.requests] == [False] * (len(server.requests) - 1) + [True]
    assert len(server.requests) < 20


def test_a_verdict_is_sent_after_its_prediction(server: Ledger, make_client: MakeClient) -> None:
    refused: list[Refusal] = []
    client = make_client(on_refused=refused.append)
    order = []
    for i in range(5):
        order.append(client.log(IMAGE, model="m", label="x"))
        order.append(client.feedback(order[-1], "incorrect", comment=f"no {i}", ticket="T-1"))
    unknown = client.feedback(uuid.uuid4(), "unsure")
    assert client.flush(LONG)
    assert server.order == order
    first = server.feedback[order[1]]
    assert (first["prediction_id"], first["verdict"], first["comment"]) == (order[0], "incorrect", "no 0")
    assert [(r.kind, r.id, r.code) for r in refused] == [("feedback", unknown, 404)]


# The caller is never held up ---------------------------------------------------------------------------------------


def test_log_returns_while_the_server_hangs(server: Ledger, make_client: MakeClient) -> None:
    server.script.append(HANG)
    client = make_client()
    ids = log_many(client, 1)
    assert server.hangs.wait(LONG)
    ids += log_many(client, 200)
    assert server.predictions == {}  # the first request is still held: nothing above waited for it
    assert client.stats().queued == 201
    assert not client.flush(0.05)
    server.release.set()
    assert client.flush(LONG)
    assert sorted(server.predictions) == sorted(ids)
    assert not server.said_again


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"image": None}, "the image is a NoneType; pass the image file's bytes, or its path"),
        ({"image": b""}, "the image is empty"),
        ({"image": bytes(events.IMAGE_BYTES + 1)}, "the image has 32.0 MB; at most 32 MB are allowed"),
        ({"image": Path("/nowhere/at.all")}, "/nowhere/at.all could not be read: No such file or directory"),
        ({"image": Path("/dev/null")}, "/dev/null is not a regular file"),
        ({"label": None}, "the prediction is empty: pass a label, scores, boxes or masks"),
        ({"extra": 10**5000}, "the event cannot be written as JSON"),
    ],
)
def test_what_cannot_be_sent_is_reported_and_not_raised(
    make_client: MakeClient, arguments: dict[str, Any], reason: str
) -> None:
    refused: list[Refusal] = []
    client = make_client(on_refused=refused.append)
    payload: dict[str, Any] = {"image": IMAGE, "model": "m", "label": "x", **arguments}
    own = client.log(payload.pop("image"), **payload)
    wait_for(lambda: refused)
    assert (refused[0].id, refused[0].code) == (own, None)
    assert refused[0].reason.startswith(reason)
    assert client.stats().refused == 1


def test_a_pipe_without_a_writer_does_not_block_the_caller(make_client: MakeClient, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    client = make_client()
    client.log(tmp_path / "pipe", model="m", label="x")
    assert client.stats().refused == 1


def test_only_faults_of_the_program_raise(make_client: MakeClient) -> None:
    client = make_client()
    with pytest.raises(TypeError, match="model"):
        client.log(IMAGE, label="x")  # type: ignore[call-arg]
    for url in ("localhost:8501", "ftp://host", "http://", "http://host:port"):
        with pytest.raises(ValueError):
            Client(url)
    for options in ({"buffer_bytes": 0}, {"batch_events": 1001}, {"linger": -1}, {"timeout": 0}, {"key": "a\nb"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            make_client(**options)


# Trouble with the server -------------------------------------------------------------------------------------------

FAULTS = [CUT_BEFORE, CUT_AFTER, CLOSE, GARBAGE, Say(500), Say(503), Say(429, {"Retry-After": "0"}), Say(507), Say(408)]


@settings(max_examples=15)
@given(
    faults=st.lists(st.sampled_from([None, *FAULTS]), max_size=12),
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=3),
)
def test_whatever_goes_wrong_everything_arrives_once(
    tmp_path_factory: pytest.TempPathFactory, faults: list[Any], counts: list[int]
) -> None:
    """Any sequence of faults, several threads: each event is stored exactly once, and counted once."""
    server = Ledger().up()
    server.script.extend(faults)
    folder = tmp_path_factory.mktemp("spill")
    with Client(server.url, spill=folder, linger=0.001, longest_pause=0.005, batch_events=8) as client:
        threads = [threading.Thread(target=log_many, args=(client, count, 50)) for count in counts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.flush(LONG)
        stats = client.stats()
    server.down()
    assert len(server.predictions) == sum(counts) == stats.sent + stats.known
    assert (stats.queued, stats.refused, stats.dropped) == (0, 0, 0)
    assert list(folder.iterdir()) == []


def test_events_of_a_time_without_server_arrive_once_when_it_is_back(server: Ledger, make_client: MakeClient) -> None:
    client = make_client()
    ids = log_many(client, 20)
    assert client.flush(LONG)
    server.down()
    ids += log_many(client, 300)
    wait_for(lambda: client.stats().retries >= 3)
    ids += log_many(client, 30)
    assert "does not answer" in (client.stats().last_error or "")
    assert client.stats().queued == 330
    server.up()
    assert client.flush(LONG)
    assert server.order == ids  # and in the order they were logged
    assert not server.said_again


def test_retry_after_is_honoured(server: Ledger, make_client: MakeClient) -> None:
    server.script.append(Say(429, {"Retry-After": "1"}))
    client = make_client()
    client.log(IMAGE, model="m", label="x")
    assert client.flush(LONG)  # a flush does not hurry it
    first, second = server.requests
    assert second.at - first.at >= 1.0
    assert client.stats().retries == 1


def test_retry_after_may_be_a_date() -> None:
    soon = email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60), usegmt=True)
    assert 50 < (delivery._seconds(soon) or 0) <= 60
    assert [delivery._seconds(text) for text in ("7", " 0 ", None, "soon", "-3")] == [7.0, 0.0, None, None, None]


def test_a_refused_event_is_dropped_and_reported_and_does_not_affect_others(
    server: Ledger, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    server.items = lambda event: (422, "confidence is 7, not between 0 and 1") if event["confidence"] > 1 else None
    refused: list[Refusal] = []
    client = make_client(on_refused=refused.append)
    ids = [client.log(IMAGE, model="m", label="x", confidence=c) for c in (0.1, 7, 0.2, 8, 0.3)]
    assert client.flush(LONG)
    assert [r.id for r in refused] == [ids[1], ids[3]]
    assert (refused[0].code, refused[0].reason) == (422, "confidence is 7, not between 0 and 1")
    assert refused[0].event["confidence"] == 7
    assert (client.stats().sent, client.stats().refused, client.stats().queued) == (3, 2, 0)
    warnings = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert warnings == [f"prediction {ids[1]} was refused: confidence is 7, not between 0 and 1"]  # one in 30 seconds


def test_an_item_the_server_cannot_take_now_is_tried_again_alone(server: Ledger, make_client: MakeClient) -> None:
    left = {"b": 3}

    def busy(event: dict[str, Any]) -> tuple[int, str] | None:
        left[event["label"]] = left.get(event["label"], 0) - 1
        return (503, "the lake is busy") if left[event["label"]] >= 0 else None

    server.items = busy
    client = make_client(linger=5.0)
    for label in "abc":
        client.log(IMAGE, model="m", label=label)
    assert client.flush(LONG)
    assert [[e["label"] for e in r.events] for r in server.requests] == [["a", "b", "c"], ["b"], ["b"], ["b"]]
    assert client.stats().sent == 3


def test_a_batch_that_is_too_large_is_split_and_the_limit_remembered(server: Ledger, make_client: MakeClient) -> None:
    server.most_bytes = 30_000
    refused: list[Refusal] = []
    client = make_client(linger=5.0, on_refused=refused.append)
    log_many(client, 40, size=4_000)
    assert client.flush(LONG)
    tried = client.stats().retries
    assert len(server.predictions) == 40
    assert 1 <= tried <= 5
    log_many(client, 40, size=4_000)
    assert client.flush(LONG)
    assert client.stats().retries == tried
    too_large = client.log(bytes(40_000), model="m", label="x")
    assert client.flush(LONG)
    assert [(r.id, r.code) for r in refused] == [(too_large, 413)]


def test_a_batch_refused_as_a_whole_is_halved_until_the_culprit_is_alone(
    server: Ledger, make_client: MakeClient
) -> None:
    ids = [str(uuid.uuid4()) for _ in range(16)]
    culprit = ids[5]
    server.whole = lambda batch: Say(422) if any(e["prediction_id"] == culprit for e in batch) else None
    refused: list[Refusal] = []
    client = make_client(linger=5.0, on_refused=refused.append)
    for own in ids:
        client.log(IMAGE, model="m", label="x", prediction_id=own)
    assert client.flush(LONG)
    assert server.order == [own for own in ids if own != culprit]
    assert [r.id for r in refused] == [culprit]


def test_events_wait_for_a_key_that_is_right(server: Ledger, make_client: MakeClient) -> None:
    server.key = "ll_right_one"
    client = make_client(key="ll_wrong_one")
    ids = log_many(client, 3)
    wait_for(lambda: client.stats().retries >= 2)
    assert "401: no such key (events are kept; is the key right" in (client.stats().last_error or "")
    client.key = "ll_right_one"
    assert client.flush(LONG)
    assert server.order == ids


@pytest.mark.parametrize("status", [403, 404, 405, 415, 307])
def test_events_wait_while_the_server_is_the_wrong_one(server: Ledger, make_client: MakeClient, status: int) -> None:
    server.script.extend([Say(status)] * 3)
    client = make_client()
    ids = log_many(client, 3)
    assert client.flush(LONG)
    assert (server.order, client.stats().retries, client.stats().refused) == (ids, 3, 0)


def test_a_server_that_hangs_up_between_requests_is_no_trouble(server: Ledger, make_client: MakeClient) -> None:
    server.script.extend([CLOSE, CLOSE, CLOSE])
    client = make_client()
    for _ in range(4):
        client.log(IMAGE, model="m", label="x")
        assert client.flush(LONG)
    assert (client.stats().sent, client.stats().retries) == (4, 0)


def test_a_url_may_have_a_path(server: Ledger, make_client: MakeClient) -> None:
    with Client(f"{server.url}/lake/", spill=None) as client:
        client.log(IMAGE, model="m", label="x")
    assert [r.path for r in server.requests] == ["/lake/v1/predictions/batch"]


def test_an_exception_in_the_clients_own_threads_ends_neither(
    server: Ledger, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that fails, and a fault where none was expected."""
    faults = [ZeroDivisionError("once")]
    deliver = delivery.Server.deliver

    def faulty(self: Any, *arguments: Any) -> Any:
        if faults:
            raise faults.pop()
        return deliver(self, *arguments)

    monkeypatch.setattr(delivery.Server, "deliver", faulty)
    client = make_client(on_refused=lambda refusal: sys.exit(1))
    server.items = lambda event: (422, "no") if event["label"] == "bad" else None
    ids = [client.log(IMAGE, model="m", label=label) for label in ("good", "bad", "good")]
    assert client.flush(LONG)
    assert server.order == [ids[0], ids[2]]
    messages = [r.getMessage() for r in caplog.records if r.exc_info]
    assert messages == [
        "the client goes on after ZeroDivisionError: once",
        f"on_refused failed for {ids[1]}: SystemExit(1)",
    ]


# Memory and disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events go to disk after 20 ms, not after a second; a disk that was full is tried again as soon."""
    monkeypatch.setattr(sender, "SPILL_SECONDS", 0.02)
    monkeypatch.setattr(sender, "DISK_SECONDS", 0.02)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*"))


def test_memory_is_bounded_and_what_is_dropped_is_counted(
    server: Ledger, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    server.down()
    client = make_client(spill=None, buffer_bytes=100_000)
    ids = log_many(client, 300, size=1000)
    stats = client.stats()
    assert stats.queued + stats.dropped == 300
    assert 50 <= stats.queued <= 100
    wait_for(lambda: "events were dropped so far" in caplog.text)
    server.up()
    assert client.flush(LONG)
    assert server.order == ids[: stats.queued]  # the newest were dropped


@pytest.mark.usefixtures("at_once")
def test_events_beyond_the_memory_limit_go_to_disk_and_arrive_in_order(
    server: Ledger, make_client: MakeClient, spill: Path
) -> None:
    server.down()
    client = make_client(buffer_bytes=100_000)
    ids = []
    for spilled in range(50, 501, 50):
        ids += log_many(client, 50, size=1000)
        wait_for(lambda: client.stats().spilled == spilled)  # noqa: B023
    assert folder_bytes(spill) > 500_000
    assert (spill.stat().st_mode & 0o777, {p.stat().st_mode & 0o777 for p in spill.iterdir()}) == (0o700, {0o600})
    server.up()
    assert client.flush(LONG)
    assert server.order == ids
    assert (client.stats().dropped, list(spill.iterdir())) == (0, [])


@pytest.mark.usefixtures("at_once")
def test_what_is_in_flight_to_a_hanging_server_is_on_disk_too(
    server: Ledger, make_client: MakeClient, spill: Path
) -> None:
    server.script.append(HANG)
    client = make_client()
    ids = log_many(client, 5)
    assert server.hangs.wait(LONG)
    wait_for(lambda: client.stats().spilled == 5)
    ids += log_many(client, 5)
    wait_for(lambda: client.stats().spilled == 10)
    assert client.stats().queued == 10
    server.release.set()
    assert client.flush(LONG)
    assert server.order == ids
    assert (server.said_again.total(), list(spill.iterdir())) == (0, [])


@pytest.mark.usefixtures("at_once")
def test_the_spill_is_bounded_too(
    server: Ledger, make_client: MakeClient, spill: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.down()
    client = make_client(buffer_bytes=50_000, spill_bytes=100_000)
    ids: list[str] = []
    while client.stats().dropped < 50 or "spill_bytes" not in caplog.text:
        ids += log_many(client, 10, size=1000)
        time.sleep(0.005)
    assert 80_000 < folder_bytes(spill) <= 100_000
    assert "the limit is 100,000 (spill_bytes)" in caplog.text
    server.up()
    assert client.flush(LONG)
    stats = client.stats()
    assert stats.sent + stats.dropped == len(ids)
    assert set(server.order) <= set(ids)
    client.log(IMAGE, model="m", label="there is room again")
    assert client.flush(LONG)


@pytest.mark.usefixtures("at_once")
def test_a_folder_that_cannot_be_written_leaves_memory(server: Ledger, make_client: MakeClient, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    server.down()
    client = make_client(spill=tmp_path / "file")
    ids = log_many(client, 20)
    wait_for(lambda: client.stats().retries >= 2)
    server.up()
    assert client.flush(LONG)
    assert (server.order, client.stats().dropped, client.stats().spilled) == (ids, 0, 0)


DISK_FULL = """
import os, resource, signal, sys
from pathlib import Path
from lake.client.events import QueuedEvent
from lake.client.spill import Spill
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spill = Spill(Path(sys.argv[1]), 1 << 30)
limit = 10_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
events = [QueuedEvent("prediction", b'{"n":%d}' % n, bytes(3000), 0.0) for n in range(6)]
kept = 0
for event in events:
    try:
        spill.append(event)
        kept += 1
    except OSError:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
batch, records, at = spill.next().peek(99, 1 << 20)
print(kept, records, *[event.fields()["n"] for event in batch.events])
"""


def test_a_disk_that_is_full_in_the_middle_of_an_event_leaves_the_others_whole(spill: Path) -> None:
    out = subprocess.run([sys.executable, "-c", DISK_FULL, str(spill)], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["5", "5", "0", "1", "2", "4", "5"]


def some_events(count: int) -> list[QueuedEvent]:
    """Alternately a prediction with an image of some bytes, and a verdict."""
    kinds = ("prediction", "feedback")
    images = [os.urandom(7 * n) if n % 2 == 0 else b"" for n in range(count)]
    return [QueuedEvent(kinds[n % 2], b'{"n":%d}' % n, images[n], 0.0) for n in range(count)]  # type: ignore[arg-type]


def read_all(spill: Spill) -> list[tuple[str, bytes, bytes]]:
    read: list[tuple[str, bytes, bytes]] = []
    while (segment := spill.next()) is not None:
        batch, records, at = segment.peek(100, 1 << 20)
        read += [(e.kind, e.head, e.image) for e in batch.events]
        segment.advance(records, at)
    return read


@given(st.integers(0, 8), st.integers(0, 400), st.one_of(st.none(), st.integers(0, 7)))
def test_a_file_torn_or_spoiled_anywhere_gives_only_events_that_were_kept(
    tmp_path_factory: pytest.TempPathFactory, count: int, at: int, flipped: int | None
) -> None:
    """Cut at any byte: the events before it. One bit flipped anywhere: never an event that nobody logged."""
    folder = tmp_path_factory.mktemp("spill")
    written = some_events(count)
    dead = Spill(folder, 1 << 20)
    ends = [0]
    for event in written:
        dead.append(event)
        ends.append(dead.next().end)  # type: ignore[union-attr]
    dead.leave()
    for path in folder.iterdir():
        data = bytearray(path.read_bytes())
        if flipped is None:
            del data[at:]
        elif at < len(data):
            data[at] ^= 1 << flipped
        path.write_bytes(data)
    heir = Spill(folder, 1 << 20)
    heir.adopt()
    read = read_all(heir)
    sent = [(e.kind, e.head, e.image) for e in written]
    if flipped is None:
        assert read == sent[: sum(end <= at for end in ends[1:])]
    else:
        assert [event for event in read if event not in sent] == []
        assert len(read) >= sum(end <= at for end in ends[1:])
    heir.leave()


def test_a_file_has_one_owner_at_a_time(spill: Path) -> None:
    first, other = Spill(spill, 1 << 20), Spill(spill, 1 << 20)
    for event in some_events(3):
        first.append(event)
    assert other.adopt() == 0
    first.leave()
    assert other.adopt() == 3
    assert (first.adopt(), other.adopt()) == (0, 0)
    assert len(read_all(other)) == 3
    assert list(spill.iterdir()) == []


def test_processes_that_share_a_folder_share_its_bound(spill: Path) -> None:
    first, other = Spill(spill, 20_000), Spill(spill, 20_000)
    full = []
    for turn in range(40):
        try:
            (first, other)[turn % 2].append(QueuedEvent("prediction", b"{}", bytes(1000), 0.0))
        except SpillFull as error:
            full.append(str(error))
    assert 15_000 < folder_bytes(spill) <= 25_000
    assert "the limit is 20,000 (spill_bytes)" in full[0]
    first.leave()
    other.leave()


# The end of a process ----------------------------------------------------------------------------------------------

LOGGER = """
import os, sys, time
from lake.client import Client, sender
sender.SPILL_SECONDS = 0.02
url, folder, how = sys.argv[1:]
client = Client(url, spill=folder, linger=0.01, longest_pause=0.05)
for number in range(40):
    print(client.log(bytes([number]) * 500, model="m", label="x"), flush=True)
if how == "killed":
    while client.stats().spilled < 40:
        time.sleep(0.005)
    print("spilled", flush=True)
    time.sleep(60)
if how == "raises":
    raise SystemExit(3)
"""


def logger(server: Ledger, spill: Path, ending: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOGGER, server.url, str(spill), ending]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_a_killed_process_had_spilled_is_sent_by_the_next(
    server: Ledger, make_client: MakeClient, spill: Path
) -> None:
    """Killed while a request hangs: the next sends all of it, and what the server had got meanwhile is known."""
    server.script.append(HANG)
    process = logger(server, spill, "killed")
    assert process.stdout is not None
    ids = [process.stdout.readline().strip() for _ in range(40)]
    assert process.stdout.readline() == "spilled\n"
    before = make_client(linger=0.0)
    assert before.flush(LONG)  # the files are the living process'
    assert before.stats().sent == 0
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LONG)
    server.release.set()
    heir = make_client()
    assert heir.flush(LONG)
    assert sorted(server.predictions) == sorted(ids)
    assert heir.stats().sent + heir.stats().known == 40
    assert list(spill.iterdir()) == []


RESTLESS = """
import os, sys
from lake.client import Client, sender
sender.SPILL_SECONDS = 0.002
client = Client(sys.argv[1], spill=sys.argv[2], linger=0.001, longest_pause=0.01)
while True:
    own = client.log(os.urandom(2000), model="m", label="x")
    print(own, client.stats().spilled, flush=True)
"""


@pytest.mark.parametrize("kills", [4, pytest.param(150, marks=pytest.mark.soak)])
def test_kills_at_any_moment_lose_nothing_that_was_on_disk(
    server: Ledger, make_client: MakeClient, spill: Path, kills: int
) -> None:
    """Each process takes over what the killed ones before it left, and is killed itself."""
    server.down()
    chance = random.Random(kills)
    safe: list[str] = []
    for _ in range(kills):
        command = [sys.executable, "-c", RESTLESS, server.url, str(spill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            while lines[-1].endswith(" 0\n"):
                lines.append(process.stdout.readline())
            time.sleep(chance.uniform(0.0, 0.15))
            process.kill()
            lines += process.stdout
        pairs = [line.split() for line in lines if line.count(" ") == 1 and line.endswith("\n")]
        safe += [own for own, _ in pairs[: int(pairs[-1][1])]]
    assert len(safe) >= kills
    server.up()
    heir = make_client()
    assert heir.flush(LONG * 3)
    assert set(safe) <= set(server.predictions)
    assert heir.stats().dropped == 0
    assert list(spill.iterdir()) == []
    print(f"{kills} kills, {len(safe)} events known to be on disk, all arrived")  # noqa: T201


@pytest.mark.parametrize("ending", ["ends", "raises"])
def test_a_process_that_forgets_to_close_sends_at_its_exit(server: Ledger, spill: Path, ending: str) -> None:
    out, _ = logger(server, spill, ending).communicate(timeout=LONG)
    assert server.order == out.split()
    assert list(spill.glob("*")) == []


def test_a_process_that_ends_without_server_leaves_its_events_on_disk(
    server: Ledger, make_client: MakeClient, spill: Path
) -> None:
    server.down()
    process = logger(server, spill, "ends")
    out, errors = process.communicate(timeout=LONG)
    assert process.returncode == 0
    assert "does not answer" in errors
    server.up()
    assert make_client().flush(LONG)
    assert server.order == out.split()


def test_close_sends_what_waits_and_afterwards_log_drops(server: Ledger, make_client: MakeClient) -> None:
    client = make_client(linger=5.0)
    ids = log_many(client, 10)
    assert client.close()
    assert server.order == ids
    client.log(IMAGE, model="m", label="late")
    assert (client.stats().dropped, client.stats().last_error) == (1, "an event was logged after close(), and dropped")
    assert client.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("lakeloop-")]


def test_close_keeps_what_a_hanging_server_does_not_take(server: Ledger, make_client: MakeClient, spill: Path) -> None:
    server.script.append(HANG)
    client = make_client()
    ids = log_many(client, 10)
    assert server.hangs.wait(LONG)
    ids += log_many(client, 10)
    assert not client.close(0.05)
    assert client.stats().dropped == 0
    server.release.set()
    assert make_client().flush(LONG)
    assert sorted(server.predictions) == sorted(ids)


def test_close_without_a_disk_drops_and_counts(server: Ledger, make_client: MakeClient) -> None:
    server.down()
    client = make_client(spill=None)
    log_many(client, 10)
    assert not client.close(0.1)
    assert (client.stats().dropped, client.stats().queued) == (10, 0)


@pytest.mark.filterwarnings("ignore")  # Lance, when another test has loaded it, warns of forks
def test_a_forked_child_sends_its_own_and_leaves_the_parents_alone(
    server: Ledger, make_client: MakeClient, spill: Path
) -> None:
    server.script.append(HANG)
    client = make_client()
    ids = log_many(client, 5)
    assert server.hangs.wait(LONG)
    ours, theirs = os.pipe()
    if os.fork() == 0:
        own = client.log(b"child", model="m", label="x")
        sent = client.flush(LONG) and client.stats().sent == 1
        os.write(theirs, own.encode() if sent else b"not sent")
        os._exit(0)
    os.close(theirs)
    with open(ours) as file:
        own = file.read()
    os.wait()
    assert list(server.predictions) == [own]
    server.release.set()
    assert client.flush(LONG)
    assert sorted(server.predictions) == sorted([own, *ids])
    assert not server.said_again


def test_the_default_folder_is_the_servers_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first, same, other = (core._own_folder(f"http://{h}") for h in ("lake:8501/a", "lake:8501/a/", "lake:8501/b"))
    assert first is not None
    assert first == same != other
    assert first.parent == tmp_path / "lakeloop" / "spill"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", "relative")
    assert core._own_folder("http://lake") is None


# Decorator and context manager -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("cat", {"label": "cat"}),
        (("cat", 0.75), {"label": "cat", "confidence": 0.75}),
        (("cat", np.float32(0.75)), {"label": "cat", "confidence": 0.75}),
        ({"cat": 0.75, "dog": 0.25}, {"scores": {"cat": 0.75, "dog": 0.25}}),
        ({"label": "cat", "confidence": 0.5, "k": 1}, {"label": "cat", "confidence": 0.5, "metadata": {"k": 1}}),
        ({"label": 3, "confidence": 0.5}, {"label": 3, "confidence": 0.5}),
        ({"boxes": []}, {"boxes": []}),
        (None, None),
    ],
)
def test_a_decorated_function_logs_what_it_returns(
    server: Ledger, make_client: MakeClient, returned: Any, expected: dict[str, Any] | None
) -> None:
    client = make_client()

    @client.logged(model="cells", model_version="3")
    def predict(image: bytes) -> Any:
        """Says what it is."""
        return returned

    assert predict(IMAGE) is returned
    assert (predict.__name__, predict.__doc__) == ("predict", "Says what it is.")
    assert client.flush(LONG)
    sent = list(server.predictions.values())
    if expected is None:
        assert sent == []
        return
    assert 0 < sent[0].pop("latency_ms") < LONG * 1000
    del sent[0]["prediction_id"], sent[0]["timestamp"]
    assert sent == [{"model": "cells", "model_version": "3", "image": IMAGE, **expected}]
    assert client.stats().refused == 0


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ({"class": "cat", "Conf": 0.5, "k": 1}, {"label": "cat", "confidence": 0.5, "metadata": {"k": 1}}),
        ({"class": 3, "score": 0.5}, {"label": 3, "confidence": 0.5, "metadata": {}}),
        (
            {"label": "cat", "class": "b", "score": 1, "confidence": 0.5},
            {"label": "cat", "confidence": 0.5, "metadata": {"class": "b", "score": 1}},
        ),
        ({"label": "cat", "prediction": "dog"}, "'label' and 'prediction', which could each be the label"),
        ({"label": "cat", "score": 1, "prob": 0.5}, "'score' and 'prob', which could each be the confidence"),
    ],
)
def test_a_returned_mapping_is_understood_under_the_names_of_a_log(returned: Any, expected: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises(Unfit, match=expected):
            read_prediction(returned)
    else:
        assert read_prediction(returned) == expected


def test_exceptions_of_a_decorated_function_pass_through(server: Ledger, make_client: MakeClient) -> None:
    client = make_client()
    error = KeyError("its own")

    @client.logged(model="m")
    def predict(image: bytes) -> str:
        raise error

    with pytest.raises(KeyError) as raised:
        predict(IMAGE)
    assert raised.value is error
    assert client.flush(LONG)
    assert (server.requests, client.stats().refused) == ([], 0)


def test_methods_coroutines_and_other_shapes_can_be_decorated(server: Ledger, make_client: MakeClient) -> None:
    client = make_client()

    class Model:
        @client.logged(model="method", line="B")
        def predict(self, threshold: float, *, image: bytes) -> str:
            return "cat"

    @client.logged(model="coroutine")
    async def predict(image: bytes) -> tuple[str, float]:
        await asyncio.sleep(0)
        return "dog", 0.5

    @client.logged(model="named", image="path", convert=lambda result: result[0])
    def read(ignored: bytes, path: str = "/nowhere") -> list[str]:
        return ["cow"]

    assert Model().predict(0.5, image=IMAGE) == "cat"
    assert asyncio.run(predict(IMAGE)) == ("dog", 0.5)
    assert read(b"not this", __file__) == ["cow"]
    assert client.flush(LONG)
    sent = {e["model"]: e for e in server.predictions.values()}
    assert {name: e["label"] for name, e in sent.items()} == {"method": "cat", "coroutine": "dog", "named": "cow"}
    assert sent["named"]["image"] == Path(__file__).read_bytes()
    assert sent["method"]["metadata"] == {"line": "B"}


def test_a_result_that_the_decorator_cannot_read_is_reported_and_returned(make_client: MakeClient) -> None:
    refused: list[Refusal] = []
    client = make_client(on_refused=refused.append)
    thing = object()
    assert client.logged(model="m")(lambda image: thing)(IMAGE) is thing
    assert client.logged(model="m")(lambda image: "cat")("text is no image") == "cat"
    assert client.logged(model="m", convert=lambda result: result["x"])(lambda image: "cat")(IMAGE) == "cat"
    wait_for(lambda: len(refused) == 3)
    reasons = " ".join(r.reason for r in refused)
    assert "returned a object, which is not a prediction" in reasons
    assert "no argument is an image file's bytes or a path" in reasons
    assert "TypeError: string indices must be integers" in reasons


def test_a_function_that_cannot_be_logged_is_refused_by_the_decorator(make_client: MakeClient) -> None:
    client = make_client()
    with pytest.raises(TypeError, match="generator"):

        @client.logged(model="m")
        def stream(image: bytes) -> Iterator[str]:
            yield "cat"

    with pytest.raises(TypeError, match="no parameter 'picture'"):
        client.logged(model="m", image="picture")(lambda image: "cat")


def test_a_with_block_logs_the_prediction_set_in_it(server: Ledger, make_client: MakeClient) -> None:
    client = make_client()
    with client.prediction(IMAGE, model="m", model_version="2", source="cam-1", line="B") as prediction:
        prediction.label, prediction.confidence = "cat", 0.5
        prediction.metadata["k"] = 1
    assert client.feedback(prediction.prediction_id, "correct")
    assert client.flush(LONG)
    sent = server.predictions[prediction.prediction_id]
    assert (sent["label"], sent["confidence"], sent["source"]) == ("cat", 0.5, "cam-1")
    assert sent["metadata"] == {"line": "B", "k": 1}
    assert 0 < sent["latency_ms"] < LONG * 1000
    with pytest.raises(KeyError), client.prediction(IMAGE, model="m", label="never") as prediction:
        raise KeyError
    own = uuid.uuid4()
    with client.prediction(IMAGE, model="m", prediction_id=own) as prediction:
        prediction.label = "mine"
    with client.prediction(IMAGE, model="m", label="x") as prediction:
        prediction.metadata = None  # type: ignore[assignment]
    assert client.flush(LONG)
    assert list(server.predictions) == [sent["prediction_id"], str(own)]
    assert client.stats().refused == 1


def test_the_asynchronous_client(server: Ledger, spill: Path) -> None:
    async def serve() -> list[str]:
        async with AsyncClient(server.url, spill=spill) as client:
            ids = [client.log(IMAGE, model="m", label="x")]
            assert await client.flush(LONG)
            assert server.order == ids
            async with client.prediction(IMAGE, model="m") as prediction:
                prediction.label = "y"
            ids.append(prediction.prediction_id)

            @client.logged(model="m")
            async def predict(image: bytes) -> str:
                return "z"

            await predict(IMAGE)
            assert await client.close()
            return ids

    ids = asyncio.run(serve())
    assert server.order[:2] == ids
    assert len(server.order) == 3


def test_flushing_does_not_hold_up_the_event_loop(server: Ledger) -> None:
    server.script.append(HANG)

    async def serve() -> None:
        async with AsyncClient(server.url, spill=None, linger=0.0) as client:
            client.log(IMAGE, model="m", label="x")
            flushing = asyncio.create_task(client.flush(LONG))
            while not server.hangs.is_set():
                await asyncio.sleep(0.005)
            assert not flushing.done()
            server.release.set()
            assert await flushing
            server.down()
            client.log(IMAGE, model="m", label="x")
            with pytest.raises(TimeoutError):  # and its thread does not keep asyncio.run from ending
                await asyncio.wait_for(client.flush(), 0.05)
            server.up()

    asyncio.run(serve())


# Imports and documentation -----------------------------------------------------------------------------------------


def test_importing_the_client_imports_the_standard_library_and_little_of_it() -> None:
    code = "import sys, json; before = set(sys.modules); import lake.client; print(json.dumps(list(sys.modules)))"
    out = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in json.loads(out.stdout)}
    assert roots - set(sys.stdlib_module_names) <= {"lake", "__main__"}
    assert not {"asyncio", "ssl", "sqlite3", "multiprocessing"} & roots


def test_the_page_lists_every_option_and_count() -> None:
    page = (Path(__file__).parents[3] / "docs/client.md").read_text()
    table = page.split("| option | default | meaning |", 1)[1]
    listed = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", table, re.M)))
    assert sorted(listed) == sorted(set(inspect.signature(Client).parameters) - {"url"})
    assert all(f"`{field.name}`" in table for field in dataclasses.fields(core.Stats))


# The real server ---------------------------------------------------------------------------------------------------


@contextmanager
def lakeloop_serve(lake: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL. Killed at the end unless it has ended before."""
    serve = ["serve", "--lake", lake, "--no-ui", "--port", str(port)]
    command = [sys.executable, "-c", "import sys; from search_app.cli.main import entry; sys.exit(entry())", *serve]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if match := re.search(r"http://[\w.]+:\d+", line):
                    yield process, match[0]
                    break
        finally:
            process.kill()


def test_what_was_logged_before_during_and_after_a_kill_of_the_server_is_in_it(
    make_lake: MakeLake, spill: Path
) -> None:
    lake = make_lake()

    def log_some(count: int) -> list[str]:
        pictured = [pictures.encoded(pictures.noise(n % 3)) for n in range(count)]
        return [client.log(image, model="cells", label="x", confidence=0.5, line="B") for image in pictured]

    with lakeloop_serve(lake.uri) as (process, url):
        client = Client(url, spill=spill, linger=0.02, longest_pause=0.2)
        ids = log_some(20)
        assert client.flush(LONG)
        ids += log_some(20)
        process.kill()
        process.wait(LONG)
    ids += log_some(20)
    with lakeloop_serve(lake.uri, urllib.parse.urlsplit(url).port or 0) as (process, _):
        verdict = client.feedback(ids[0], "incorrect", comment="a scratch")
        refused = client.log(b"no image at all", model="cells", label="x")
        assert client.flush(LONG)
        stats = client.stats()
        for own in ids:
            with urllib.request.urlopen(f"{url}/v1/predictions/{own}") as response:
                assert json.load(response)["prediction_id"] == own
        with pytest.raises(urllib.error.HTTPError, match="404") as unknown:
            urllib.request.urlopen(f"{url}/v1/predictions/{refused}")
        unknown.value.close()
    assert verdict
    assert stats.sent + stats.known == 61
    assert (stats.refused, stats.dropped, stats.queued) == (1, 0, 0)
    client.close()


def test_a_prediction_that_drips_is_given_up_after_the_whole_timeout(spill: Path) -> None:
    """A server that sends a byte of its response now and then: no single wait is long."""
    listener = socket.create_server(("127.0.0.1", 0))
    ending = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            while not ending.wait(0.05):
                connection.sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    requests = ModelRequests(f"http://127.0.0.1:{listener.getsockname()[1]}", 0.5, None)
    started = time.monotonic()
    with pytest.raises(NotAnswered):
        requests.predict(IMAGE, "m", None, None)
    assert time.monotonic() - started < 10  # the thousand bytes would take fifty seconds
    ending.set()
    thread.join()
    listener.close()
