"""A stream with hostile events through every door of a real server: each sound one is in the lake within 30 seconds.

Each hostile one is refused at the door with a named reason, or is in the lake with what is wrong with its image. What
an earlier release has acknowledged and no table takes is parked with its reason.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from lake import open_lake
from lake.client import Client
from lake.client.events import Refusal
from lake.open_lake import OpenLake
from lake.spool.spool import Spool
from lake.storage import indexes
from search_app.cli import main as cli
from tests.conftest import MakeLake, Say
from tests.crash.service import Service
from tests.hostile.conftest import Serve
from tests.hostile.hostile_events import Hostile, arrow, hostile_events, hostile_images
from tests.hostile.watch import Watch
from tests.lake import live_events, stock
from tests.pictures import encoded, noise
from tests.search_app.api_client import ARROW, JSON, NDJSON, in_base64, named

BLOCK = 100  # events: 20 by each door, and the hostile ones among them
MOST_SECONDS = 30.0
VECTORS = 1_200


def sound(number: int) -> dict[str, Any]:
    return {"prediction_id": live_events.name(number), "model": "m", "label": "sound", "confidence": 0.5, "line": "B"}


def picture(number: int) -> bytes:
    return encoded(noise(number, 12, 8))


class Stream:
    """Sends events by every door; records when each was acknowledged, and how each other one was refused."""

    def __init__(self, service: Service) -> None:
        url = f"http://127.0.0.1:{service.port}"
        self.http = httpx.Client(base_url=url, timeout=60)
        self.client = Client(url, spill=None, on_refused=self._client_refused)
        self.acknowledged: dict[str, float] = {}
        self.hostile: dict[str, Hostile] = {}
        self.refused: dict[str, str] = {}
        self.reasons: Counter[str] = Counter()

    def block(self, first: int, hostile: Sequence[tuple[str, Hostile]]) -> None:
        """Sends the sound events from `first` on, a fifth by each door, and the hostile ones by theirs."""
        self.hostile |= dict(hostile)
        numbers = range(first, first + BLOCK - len(hostile))
        for number in numbers[0::5]:
            self._image(sound(number), picture(number))
        for number in numbers[1::5]:
            body = json.dumps(sound(number) | {"image_id": named(picture(number - 1))}).encode()
            self._answered(live_events.name(number), self.http.post("/v1/predictions", content=body, headers=JSON))
        self._batch(numbers[2::5], hostile)
        rows = [sound(number) | {"image": picture(number)} for number in numbers[3::5]]
        self._stream([row["prediction_id"] for row in rows], arrow(pa.Table.from_pylist(rows)))
        for number in numbers[4::5]:
            self._log(image=picture(number), **sound(number))
        for own, event in hostile:
            match event.door:
                case "image":
                    header, image = event.content
                    self._image(header, image)
                case "json":
                    answer = self.http.post("/v1/predictions", content=event.content, headers=JSON)
                    self._answered(own, answer)
                case "stream":
                    self._stream([own], event.content)
                case "client":
                    self._log(**event.content)

    def finish(self) -> None:
        assert self.client.flush(60)
        self.client.close()

    def _image(self, event: dict[str, Any], image: bytes) -> None:
        headers = {"Content-Type": "image/png", "Lakeloop-Event": json.dumps(event)}
        self._answered(event["prediction_id"], self.http.post("/v1/predictions", content=image, headers=headers))

    def _batch(self, numbers: Sequence[int], hostile: Sequence[tuple[str, Hostile]]) -> None:
        lines = [
            (live_events.name(n), json.dumps(sound(n) | {"image_base64": in_base64(picture(n))}).encode())
            for n in numbers
        ]
        between = [(own, event.content) for own, event in hostile if event.door == "line"]
        lines[len(lines) // 2 : len(lines) // 2] = between
        answer = self.http.post("/v1/predictions/batch", content=b"\n".join(line for _, line in lines), headers=NDJSON)
        self._items([own for own, _ in lines], answer)

    def _stream(self, names: Sequence[str], body: bytes) -> None:
        answer = self.http.post("/v1/predictions/batch", content=body, headers=ARROW)
        if answer.status_code == 200:
            self._items(names, answer)
        else:
            self._answered(names[0], answer)

    def _items(self, names: Sequence[str], answer: httpx.Response) -> None:
        assert answer.status_code == 200, answer.text[:500]
        for own, item in zip(names, answer.json()["items"], strict=False):
            self._note(own, item["code"], item.get("reason"), item.get("detail"))

    def _answered(self, own: str, answer: httpx.Response) -> None:
        facts = answer.json()
        self._note(own, answer.status_code, facts.get("reason"), facts.get("detail"))

    def _note(self, own: str, code: int | None, reason: str | None, detail: str | None) -> None:
        if code == 201:
            self.acknowledged[own] = time.monotonic()
        else:
            assert reason
            assert detail
            self.reasons[f"{code} {reason}"] += 1
            self.refused[own] = reason

    def _log(self, **arguments: Any) -> None:
        # Counted from here on: the client says of no event when it was acknowledged.
        self.acknowledged[self.client.log(**arguments)] = time.monotonic()

    def _client_refused(self, refusal: Refusal) -> None:
        del self.acknowledged[refusal.id]
        self.reasons[f"{refusal.code or 'refused'} by the client"] += 1
        self.refused[refusal.id] = refusal.reason


class Arrivals:
    """When each prediction was first seen in the lake. Use it as a context manager."""

    def __init__(self, lake: OpenLake) -> None:
        self._lake = open_lake.open(lake.uri)
        self.seen: dict[str, float] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _look(self) -> None:
        count = -1
        while not self._ending.wait(0.5):
            if self._lake.dataset("samples").count_rows() == count:
                continue
            names = self._lake.scan("samples", ["prediction_id"])["prediction_id"].to_pylist()
            count, now = len(names), time.monotonic()
            for name in names:
                self.seen.setdefault(name, now)


def acknowledged_by_an_earlier_release(lake: OpenLake) -> dict[str, str]:
    """Puts events into the spool that today's doors refuse, and sound ones between. By id, a word of its reason."""
    scores = '{"model": "m", "label": "x", "scores": [{"label": 7}]}'
    bad = {"26.0 MiB": None, "JSONDecodeError": "not JSON", "Arrow": scores}
    planted, spool = {}, Spool(Path(lake.uri) / "spool")
    for number, (reason, row) in enumerate(bad.items()):
        event = live_events.prediction(10**8 + number)
        event.row = json.dumps({**json.loads(event.row), "metadata": "x" * (26 << 20)}) if row is None else row
        planted[event.event_id] = reason
        spool.put([live_events.prediction(10**7 + number), event])
    spool.close()
    return planted


def with_indexes_and_vectors(lake: OpenLake) -> OpenLake:
    """The lake with 1,200 rows that have vectors, and key indexes over all rows."""
    stock.add(lake, range(10**6, 10**6 + VECTORS), size=200)
    stock.bind(lake)
    stock.embed(lake, range(10**6, 10**6 + VECTORS), size=200)
    for name in ("images", "thumbnails", "samples", "audit"):
        indexes.complete(lake, name)
    return lake


Blocks = list[tuple[int, list[tuple[str, Hostile]]]]


def _blocks(count: int, kinds: list[Hostile], each: int) -> Blocks:
    """The first number of each block of 100 events, and its hostile events with their ids: `each` a block."""
    left = itertools.cycle(kinds)
    blocks = []
    for first in range(10, count, BLOCK):
        other = live_events.name(first + 2)
        ids = [str(uuid.uuid4()) for _ in range(each)]
        blocks.append((first, [(own, next(left).with_ids(own, other)) for own in ids]))
    return blocks


def run(
    lake: OpenLake, serve: Serve, say: Say, capsys: pytest.CaptureFixture[str], blocks: Blocks, threads: int
) -> None:
    hostile = {own: event for _, events in blocks for own, event in events}
    sound_ids = {live_events.name(n) for first, events in blocks for n in range(first, first + BLOCK - len(events))}
    planted = acknowledged_by_an_earlier_release(lake)
    service = serve(lake)
    stream = Stream(service)
    with Arrivals(lake) as arrivals, Watch(service) as watch:
        time.sleep(0.3)
        idle = watch.resident["server"]
        began = time.monotonic()
        with ThreadPoolExecutor(threads) as many:
            for _ in many.map(lambda block: stream.block(*block), blocks):
                pass
        stream.finish()
        sent = time.monotonic() - began
        deadline = time.monotonic() + 2 * MOST_SECONDS
        while not set(stream.acknowledged) <= set(arrivals.seen) and time.monotonic() < deadline:
            time.sleep(0.1)
        parked = _check_parked(stream, lake, planted, capsys)
        watch.check()
    stream.http.close()
    assert sound_ids <= set(stream.acknowledged)
    waited = {own: arrivals.seen.get(own, float("inf")) - at for own, at in stream.acknowledged.items()}
    _check_hostile(lake, stream, hostile)
    slowest = max(waited.values())
    taken = len(set(hostile) & set(stream.acknowledged))
    kinds = len({event.name for event in hostile.values()})
    grown = (watch.resident["server"] - idle) >> 20
    say(
        f"pipeline: {len(sound_ids) + len(hostile):,} events in {sent:.1f} s, five doors, {len(hostile)} hostile "
        f"of {kinds} kinds: {len(stream.refused)} refused {dict(stream.reasons.most_common())}, {taken} taken "
        f"as text or with their image marked; {parked} of an earlier release parked; {len(sound_ids):,} sound ones in "
        f"the lake, the last {slowest:.1f} s after its acknowledgement; the server grew by {grown} MiB; {watch}"
    )
    assert slowest < MOST_SECONDS


def _check_hostile(lake: OpenLake, stream: Stream, hostile: dict[str, Hostile]) -> None:
    """Each is refused as it says, or is in the lake: with a thumbnail, or with the reason why there is none."""
    rows = lake.sql("SELECT prediction_id, image_id, image_status FROM samples WHERE label <> 'sound'").to_pylist()
    status = {row["prediction_id"]: row for row in rows}
    shown = set(lake.scan("thumbnails", ["image_id"])["image_id"].to_pylist())
    for own, event in hostile.items():
        if own in stream.acknowledged:
            assert event.reason is None, event.name
            row = status[own]
            assert (row["image_status"] is None) == (row["image_id"] in shown), event.name
        else:
            assert (event.reason or "unreadable_image") in stream.refused[own], event
            assert own not in status


def _check_parked(stream: Stream, lake: OpenLake, planted: dict[str, str], capsys: pytest.CaptureFixture[str]) -> int:
    """What no table takes is parked with its reason where operators look; retried, it is parked again; then dropped."""

    def spool(*words: str) -> Any:
        capsys.readouterr()
        assert cli.main(["spool", "parked", *words, "--lake", lake.uri, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    def depth() -> tuple[int, int]:
        facts = stream.http.get("/v1/status").json()["spool"]
        return facts["events"], facts["parked"]

    reasons = {event["event_id"]: event["reason"] for event in spool("list")}
    assert set(reasons) == set(planted)
    assert [own for own, word in planted.items() if word not in reasons[own]] == []
    assert depth() == (0, len(planted))
    assert f"lakeloop_spool_parked_events {len(planted)}.0" in stream.http.get("/metrics").text
    spool("retry", *planted)
    until = time.monotonic() + MOST_SECONDS
    while depth() != (0, len(planted)) and time.monotonic() < until:
        time.sleep(0.5)
    assert depth() == (0, len(planted))
    spool("drop", *planted)
    assert depth() == (0, 0)
    return len(planted)


@pytest.mark.parametrize(
    ("count", "vectors"),
    [
        (300, True),
        pytest.param(10_000, False, marks=pytest.mark.soak),
        pytest.param(10_000, True, marks=pytest.mark.soak),
    ],
)
def test_hostile_events_delay_no_sound_one(
    make_lake: MakeLake, serve: Serve, say: Say, capsys: pytest.CaptureFixture[str], count: int, vectors: bool
) -> None:
    lake = make_lake(embedders=["x"] if vectors else [])
    if vectors:
        with_indexes_and_vectors(lake)
    kinds = hostile_events()
    if count == 300:
        run(lake, serve, say, capsys, _blocks(count, kinds, -(-len(kinds) // 3)), threads=2)
    else:
        run(lake, serve, say, capsys, _blocks(count, kinds + hostile_images(), 1), threads=4)
