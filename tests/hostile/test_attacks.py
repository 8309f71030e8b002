"""Every attack that once filled or stopped a server, one after another: a table of what each gets and what it costs.

What each attack is about has tests of its own, most of them in this folder; `docs/threats.md` names them.
"""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_websocket
from websockets.typing import Subprotocol

from lake.open_lake import OpenLake
from tests.conftest import MakeLake, Say
from tests.crash.service import ROOT, Service
from tests.hostile import files
from tests.hostile.conftest import Serve
from tests.hostile.hostile_events import IMAGE, hostile_events
from tests.hostile.test_filters import FILTERS
from tests.hostile.test_requests import FLOODS
from tests.hostile.test_slow_clients import connect, slow_clients
from tests.hostile.watch import Watch
from tests.lake import stock
from tests.search_app.api_client import ARROW, JSON, NDJSON, event, in_base64, named

SMALL = 300 << 20
BATCH = "/v1/predictions/batch"


class Cost(NamedTuple):
    """`answers`: statuses and reasons. `grown`: bytes of the server above its idle size, of an import in all.

    `slowest`: seconds of /healthz, -1 where no server was asked.
    """

    answers: str
    seconds: float
    grown: int
    slowest: float


def lines(text: bytes) -> bytes:
    """A batch of 1,000 events about a stored image, each with this text."""
    start = json.dumps(event(image_id=named(IMAGE))).encode()[:-1]
    return b"\n".join([start + b"," + text + b"}"] * 1_000)


def answer(response: httpx.Response) -> str:
    """The status and the reason, that of the first item for a batch."""
    with suppress(ValueError):
        facts = response.json()
        facts = facts["items"][0] if isinstance(facts, dict) and "items" in facts and facts["items"] else facts
        if isinstance(facts, dict) and "reason" in facts:
            return f"{facts.get('code', facts.get('status'))} {facts['reason']}"
    return str(response.status_code)


def at_once(client: httpx.Client, count: int, ask: Callable[[httpx.Client], httpx.Response]) -> str:
    with ThreadPoolExecutor(count) as many:
        answers = [answer(response) for response in many.map(lambda _: ask(client), range(count))]
    return ", ".join(f"{answers.count(kind)} x {kind}" for kind in sorted(set(answers)))


def flood(name: str) -> Callable[[httpx.Client], str]:
    first, again = FLOODS[name]

    def send(client: httpx.Client) -> str:
        with connect(str(client.base_url).rstrip("/")) as connection:
            with suppress(ConnectionError):
                connection.sendall(first)
                for _ in range((48 << 20) // len(again)):
                    connection.sendall(again)
            with suppress(ConnectionError, socket.timeout):
                return connection.recv(100)[9:12].decode() or "closed"
        return "closed"

    return send


def slow(idle: int, bodies: int) -> Callable[[httpx.Client], str]:
    def hold(client: httpx.Client) -> str:
        with slow_clients(str(client.base_url).rstrip("/"), idle, bodies, 0):
            started = time.monotonic()
            beside = answer(client.post("/v1/predictions", json=event(image_id=named(IMAGE))))
            return f"{beside} for an event beside, after {time.monotonic() - started:.2f} s"

    return hold


def messages(client: httpx.Client) -> str:
    """60 MiB that are compressed to 60 KB, as a message of a page, over eight connections."""
    url = str(client.base_url).replace("http", "ws").rstrip("/") + "/_stcore/stream"

    def send(_: int) -> str:
        with connect_websocket(url, subprotocols=[Subprotocol("streamlit")], max_size=None) as opened:
            try:
                opened.send(bytes(60 << 20))
                while opened.recv(20):
                    pass
            except ConnectionClosed as closed:
                return f"closed with {closed.rcvd.code if closed.rcvd else None}"
            except TimeoutError:
                return "taken"
        return "taken"

    with ThreadPoolExecutor(8) as many:
        answers = Counter(many.map(send, range(8)))
    return ", ".join(f"{count} x {kind}" for kind, count in answers.items())


def batch(body: bytes, kind: dict[str, str] = NDJSON) -> Callable[[httpx.Client], str]:
    return lambda client: answer(client.post(BATCH, content=body, headers=kind))


def attacks() -> dict[str, Callable[[httpx.Client], str]]:
    """By what it is: sends it over the client, and returns what came back."""
    hostile = {each.name: each.content for each in hostile_events()}
    tree = f"SELECT * FROM near('a') WHERE image_id IN ({','.join(['1'] * 300_000)})"
    image = files.png(6_300, 6_300, 8, 6, bytes(6_300 * (1 + 4 * 6_300)))
    everything = json.dumps({"x": [0] * 900_000}).encode()

    def search(where: str) -> Callable[[httpx.Client], str]:
        return lambda client: answer(client.post("/v1/search", json={"ids": ["a" * 64], "where": where}))

    def question(client: httpx.Client) -> httpx.Response:
        return client.post("/v1/queries", content=image, headers={"Content-Type": "image/png"})

    def body(client: httpx.Client) -> httpx.Response:
        return client.post("/v1/predictions", content=everything, headers=JSON)

    def link(client: httpx.Client) -> str:
        return answer(client.get(f"/v1/metrics?{urlencode({'where': '(' * 5_000})}"))

    def upload(client: httpx.Client) -> str:
        return answer(client.put("/_stcore/upload_file/a/b", content=bytes(100 << 20)))

    def host(client: httpx.Client) -> str:
        return answer(client.get("/v1/status", headers={"Host": "evil@127.0.0.1"}))

    def deep(client: httpx.Client) -> str:
        return answer(client.post("/v1/search", content=b"[" * 90_000, headers=JSON))

    return {
        "an event of 28 MiB in a batch": batch(hostile["28 MiB of text"]),
        "a row of Arrow that unpacks to 26 MiB": batch(hostile["a row that expands"], ARROW),
        "an Arrow stream that unpacks to 78 MiB": batch(hostile["a stream that expands"], ARROW),
        "an Arrow value shared by 100 rows": batch(hostile["a value in every row"], ARROW),
        "a batch of 57 MiB of lists": batch(lines(b'"x":[' + b"[]," * 20_000 + b"1]")),
        "a batch of 52 MiB of boxes": batch(lines(b'"boxes":[' + b",".join([b'{"bbox":[0,0,0,0]}'] * 2_900) + b"]")),
        "a batch of 57 MiB of scores": batch(lines(b'"scores":[' + b"0," * 30_000 + b"0]")),
        "an image of 32 MiB in a batch": batch(
            json.dumps(event(image_base64=in_base64(IMAGE + bytes((32 << 20) - len(IMAGE))))).encode()
        ),
        "60 events of 900,000 values at once": lambda client: at_once(client, 60, body),
        "20,000 open brackets in a search": search(FILTERS["brackets that stay open"]),
        "common tables in common tables": search(FILTERS["common tables in common tables"]),
        "a name of 9,900 parts": search(FILTERS["a name of many parts"]),
        "a filter that leaves its scope": search("true) OR (true"),
        "5,000 open brackets in a link": link,
        "600 KB of SQL around near()": lambda client: answer(client.post("/v1/sql", json={"sql": tree})),
        "90,000 levels of JSON": deep,
        "100 MiB to Streamlit's route for uploads": upload,
        "8 messages of a page of 60 MiB, compressed": messages,
        "60 images of 40 megapixels as questions": lambda client: at_once(client, 60, question),
        "1,100 idle connections": slow(1_100, 0),
        "6 silent bodies of 40 MiB": slow(0, 6),
        "an endless header": flood("a header's value"),
        "endless trailers": flood("trailers"),
        "a Host that hides another": host,
    }


def cost(service: Service, client: httpx.Client, attack: Callable[[httpx.Client], str], idle: int) -> Cost:
    status = Path(f"/proc/{service.process.pid}/status")
    status.with_name("clear_refs").write_text("5")  # from here on, VmHWM is the peak
    with Watch(service) as watch:
        time.sleep(0.3)
        started = time.monotonic()
        answers = attack(client)
        seconds = time.monotonic() - started
        time.sleep(0.3)
    watch.check()
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    assert peak
    return Cost(answers, seconds, (int(peak[1]) << 10) - idle, watch.slowest)


def table(costs: dict[str, Cost]) -> str:
    rows = ["| attack | answer | seconds | memory above idle | slowest /healthz |", "|---|---|--:|--:|--:|"]
    for name, (answers, seconds, grown, slowest) in costs.items():
        health = "" if slowest < 0 else f"{slowest * 1000:.0f} ms"
        rows.append(f"| {name} | {answers} | {seconds:.2f} | {max(0, grown) >> 20} MiB | {health} |")
    return "\n".join(rows)


def archives(folder: Path) -> dict[str, Path]:
    """Data sets of kilobytes that once took gigabytes to import."""
    yaml = folder / "yolo"
    (yaml / "images").mkdir(parents=True)
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    (yaml / "data.yaml").write_text("a0: &a0 [x]\n" + "\n".join(levels) + "\nnames: *a8\n")
    made = {"aliases in a data.yaml": yaml}
    for name, count, size, header in (("members of one name", 120, 8 << 20, 0), ("a header of 64 MiB", 1, 0, 64 << 20)):
        made[name] = path = folder / f"{count}.tar.gz"
        with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, compresslevel=1) as tar:
            for number in range(count):
                info = tarfile.TarInfo(f"one.t{number}")
                info.size = size
                info.pax_headers = {"comment": "x" * header} if header else {}
                tar.addfile(info, io.BytesIO(bytes(size)))
    return made


MEASURED = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def imported(lake: OpenLake, path: Path, layout: str) -> tuple[str, float, int]:
    """Exit status with the refusal, seconds and peak resident bytes of `lakeloop ingest`."""
    words = [sys.executable, "-m", "search_app.cli.main", "ingest", str(path), "--layout", layout, "--lake", lake.uri]
    started = time.monotonic()
    process = subprocess.run([sys.executable, "-c", MEASURED, *words], cwd=ROOT, capture_output=True, text=True)
    output = process.stdout + process.stderr
    refusal = re.search(r"it has an alias|too much of one name|a header has \d+ MiB", output)
    peak = re.search(r"^peak (\d+)$", output, re.MULTILINE)
    assert refusal, output[-2_000:]
    assert peak
    return f"exit {process.returncode}: {refusal[0]}", time.monotonic() - started, int(peak[1]) << 10


@pytest.mark.soak
def test_every_attack_ends_and_the_server_stays_small(
    make_lake: MakeLake, serve: Serve, tmp_path: Path, say: Say
) -> None:
    lake = make_lake("attacked")
    stock.add(lake, range(50))
    service = serve(lake, ui=True)
    costs: dict[str, Cost] = {}
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=300) as client:
        client.post("/v1/images", content=IMAGE, headers={"Content-Type": "image/png"}).raise_for_status()
        for _ in range(3):  # what a server needs when it is first asked is no attack's cost
            client.post("/v1/sql", json={"sql": "SELECT 1"}).raise_for_status()
            client.get("/v1/metrics", params={"where": "label = 'a'"}).raise_for_status()
            client.post("/v1/queries", content=IMAGE, headers={"Content-Type": "image/png"})
            client.post("/v1/search", json={"ids": ["a" * 64], "where": "label = 'a'"})
        idle = service.rss()
        for name, attack in attacks().items():
            costs[name] = cost(service, client, attack, idle)
    for name, path in archives(tmp_path / "archives").items():
        answers, seconds, peak = imported(lake, path, "yolo" if path.is_dir() else "webdataset")
        costs[f"import: {name}"] = Cost(answers, seconds, peak, -1)
    say(table(costs))
    assert {name: each.grown >> 20 for name, each in costs.items() if each.slowest >= 0 and each.grown > SMALL} == {}
    assert [name for name, each in costs.items() if re.search(r"\b5\d\d\b", each.answers)] == []
    # The files of one name may have 528 MiB together, as a single image may.
    assert max(each.grown for name, each in costs.items() if name.startswith("import")) < 1 << 30
    assert costs["1,100 idle connections"].answers.startswith(("200", "201"))
    assert costs["6 silent bodies of 40 MiB"].answers.startswith(("200", "201"))
