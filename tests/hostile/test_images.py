"""Hostile image files: through the look at their first bytes in this process, and through a real server and its drain.

The door refuses by what a file says of itself; what it lets in is decoded later in a worker that may die of it. Neither
may harm the server, the drainer, or the images beside it, and each answer keeps its reason.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lake.errors import UnreadableImage
from lake.images import decode
from lake.images.image_header import read_header
from lake.open_lake import OpenLake
from lake.spool.drain import Drainer
from lake.spool.spool import Spool
from tests import pictures
from tests.conftest import Say
from tests.crash.service import Service
from tests.hostile import files
from tests.hostile.conftest import Serve
from tests.hostile.watch import Watch
from tests.pictures import encoded
from tests.search_app.api_client import NDJSON, event, in_base64, named

MOST_SECONDS = 0.05
WORKER_BYTES = 1 << 30


# In this process ---------------------------------------------------------------------------------------------


def look(data: bytes) -> str | None:
    """The format in the header, or None if it is refused. Any other exception is a fault."""
    started = time.thread_time()
    try:
        header = read_header(data, decode.MAX_MEGAPIXELS)
    except UnreadableImage:
        format = None
    else:
        assert header.format in decode.FORMATS
        assert 0 < header.width * header.height <= 100_000_000
        format = header.format
    assert time.thread_time() - started < MOST_SECONDS
    return format


def test_reading_a_header_is_quick_and_raises_only_unreadable_image(say: Say) -> None:
    cut = Counter(look(data) for _, data in files.cuts())
    flipped = Counter(look(data) for _, data in files.flips(20_000))
    bombs = Counter(look(data) for data in files.bombs().values())
    for name, counts in (("cut files", cut), ("flipped files", flipped), ("bombs", bombs)):
        say(f"image headers: {counts.total():,} {name}, {counts[None]:,} refused, 0 faults")
    assert cut.total() == sum(map(len, files.valid().values()))
    assert min(cut[None], flipped[None], bombs[None]) > 20


@given(st.binary(max_size=200), st.sampled_from(sorted({data[:4] for data in files.valid().values()})))
def test_any_bytes_after_a_magic_number_are_read_or_refused(tail: bytes, magic: bytes) -> None:
    look(magic + tail)


@pytest.mark.parametrize("name", sorted(files.valid()))
def test_the_header_agrees_with_the_decoder(name: str) -> None:
    data = files.valid()[name]
    image = decode.open_image(data)
    size = image.size[::-1] if name == "tiff-sideways" else image.size  # Pillow turns this one when it opens it
    assert read_header(data, 40) == (image.format, *size)
    assert decode.decode(data).thumbnail


MODES = {
    "JPEG": ("L", "RGB", "CMYK"), "PNG": ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"), "WEBP": ("RGB", "RGBA"),
    "GIF": ("L", "P", "RGB"), "BMP": ("1", "L", "P", "RGB"),
    "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"),
}  # fmt: skip


@given(st.sampled_from([(f, m) for f in MODES for m in MODES[f]]), st.integers(1, 3_000), st.integers(1, 40), st.data())
def test_the_header_agrees_with_pillow(kind: tuple[str, str], long: int, short: int, data: st.DataObject) -> None:
    format, mode = kind
    options = {
        "JPEG": {"progressive": data.draw(st.booleans()), "exif": data.draw(st.binary(max_size=30))},
        "WEBP": {"lossless": data.draw(st.booleans())},
        "TIFF": {"big_tiff": data.draw(st.booleans())},
    }.get(format, {})
    size = (long, short) if data.draw(st.booleans()) else (short, long)
    written = encoded(Image.new(mode, size), format, **options)  # type: ignore[arg-type]
    assert read_header(written, 40) == (format, *size)


# Through a server --------------------------------------------------------------------------------------------


class Feed:
    """Sends files to a server, each with a prediction about it, and records each response."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=60)
        self.sent: dict[str, str] = {}  # prediction_id -> image_id of what was acknowledged
        self.refused: Counter[str] = Counter()
        self.slowest = 0.0

    def alone(self, data: bytes) -> int:
        """Sends one file in a request of its own; returns the status."""
        payload = event()
        headers = {"Content-Type": "image/png", "Lakeloop-Event": json.dumps(payload)}
        started = time.monotonic()
        answer = self.client.post("/v1/predictions", content=data, headers=headers)
        self.slowest = max(self.slowest, time.monotonic() - started)
        self._note(answer.status_code, answer.json(), payload["prediction_id"], named(data))
        return answer.status_code

    def together(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Sends many files in one batch."""
        payloads = [event(source=name, image_base64=in_base64(data)) for name, data in items]
        body = b"\n".join(json.dumps(payload).encode() for payload in payloads)
        answer = self.client.post("/v1/predictions/batch", content=body, headers=NDJSON)
        assert answer.status_code == 200, answer.text
        for item, payload, (_, data) in zip(answer.json()["items"], payloads, items, strict=True):
            self._note(item["code"], item, payload["prediction_id"], named(data))

    def drained(self, seconds: float) -> None:
        """Waits until the spool is empty."""
        deadline = time.monotonic() + seconds
        while (depth := self.client.get("/v1/status").json()["spool"])["events"]:
            assert time.monotonic() < deadline, depth
            time.sleep(0.2)
        assert depth["parked"] == 0

    def _note(self, status: int, response: dict[str, str], prediction_id: str, image_id: str) -> None:
        assert status in (201, 422), response
        if status == 201:
            self.sent[prediction_id] = image_id
        else:
            assert response["reason"] == "unreadable_image"
            assert response["detail"]
            self.refused[response["detail"]] += 1


def check(lake: OpenLake, feed: Feed, mates: dict[str, str]) -> Counter[str]:
    """Every acknowledged prediction is stored, with a thumbnail or a reason; good images have a thumbnail.

    Returns the reasons.
    """
    rows = lake.sql("SELECT prediction_id, image_id, image_status FROM samples").to_pylist()
    assert {row["prediction_id"]: row["image_id"] for row in rows} == feed.sent
    stored = set(lake.scan("images", ["image_id"])["image_id"].to_pylist())
    shown = set(lake.scan("thumbnails", ["image_id"])["image_id"].to_pylist())
    assert stored == set(feed.sent.values())
    for row in rows:
        assert (row["image_id"] in shown) == (row["image_status"] is None), row
    assert set(mates.values()) <= shown
    return Counter(row["image_status"] for row in rows if row["image_status"] is not None)


def _batches(feed: Feed, items: Iterable[tuple[str, bytes]], size: int) -> dict[str, str]:
    """Sends all files in batches with a good image in each; returns the ids of the good images."""
    source, mates, number = iter(items), {}, 0
    while batch := list(islice(source, size)):
        good = pictures.encoded(pictures.scene(10_000 + number, 20, 14))
        number += 1
        batch.insert(len(batch) // 2, ("a good one", good))
        feed.together(batch)
        mates[str(number)] = named(good)
    return mates


def _feed_and_check(lake: OpenLake, serve: Serve, say: Say, step: int, flips: int) -> None:
    service = serve(lake)
    feed = Feed(service)
    with feed.client, Watch(service) as watch:
        good = pictures.encoded(pictures.scene(9_999, 20, 14))
        statuses: Counter[int] = Counter()
        for data in (*files.bombs().values(), good, *files.valid().values()):
            statuses[feed.alone(data)] += 1
        mates = _batches(feed, files.cuts(step), 300) | _batches(feed, files.flips(flips), 300)
        feed.drained(60 + (45_000 / step + flips) / 20)
        reasons = check(lake, feed, mates | {"alone": named(good)})
        watch.check()
    crashed = sum(count for reason, count in reasons.items() if "crashed" in reason or "took longer" in reason)
    say(
        f"image files: {statuses.total()} alone ({statuses[422]} refused, {feed.slowest:.2f} s at worst), "
        f"{45_099 // step:,} cut, {flips:,} flipped; {len(feed.sent):,} acknowledged and stored, "
        f"{feed.refused.total():,} refused for {len(feed.refused)} reasons, {reasons.total():,} did not decode for "
        f"{len(reasons)} reasons, of which {crashed} ended a worker; {watch}"
    )
    most = 3 if step == 1 else 30  # a loaded machine has bad seconds
    assert feed.slowest < most
    assert watch.slowest < most
    assert watch.virtual["worker"] < WORKER_BYTES + (64 << 20)
    assert watch.resident["drainer"] < 1 << 30
    assert watch.resident["server"] < 1 << 30


def test_no_file_harms_the_server_the_drainer_or_its_neighbours(
    lake_of_columns: OpenLake, serve: Serve, say: Say
) -> None:
    _feed_and_check(lake_of_columns, serve, say, step=180, flips=250)


def test_a_decoder_that_is_killed_costs_no_image(lk: OpenLake, tmp_path: Path, say: Say) -> None:
    """Images of a killed decoder are decoded again, each alone: only an image that kills its decoder is given up."""
    images = [pictures.encoded(pictures.scene(n, 300, 200), "JPEG") for n in range(160)]
    box, killed = Spool(tmp_path / "spool"), 0
    with Drainer(lk, box) as drainer:
        drainer.decoded([("first", images[0])])  # starts it
        pool = drainer._pool
        assert pool is not None
        files = [(named(data), data) for data in images]
        with ThreadPoolExecutor(1) as aside:
            work = aside.submit(drainer.decoded, files)
            while not work.done() and killed < 4:
                time.sleep(0.05)
                worker = pool._workers[0]
                if worker.ticket is not None:
                    worker.process.kill()
                    killed += 1
                    while pool._workers[0] is worker and not work.done():
                        time.sleep(0.01)
            results = work.result(120)
    box.close()
    say(f"{killed} decoders killed while decoding, {len(results)} images decoded")
    assert killed >= 2
    assert all(isinstance(result, decode.Decoded) for result in results.values())


@pytest.mark.soak
def test_no_file_harms_the_server_the_drainer_or_its_neighbours_long(
    lake_of_columns: OpenLake, serve: Serve, say: Say
) -> None:
    _feed_and_check(lake_of_columns, serve, say, step=1, flips=20_000)
