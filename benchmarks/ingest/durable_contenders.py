"""The contenders of `durable_ingest`: each starts a server process and generates the load itself."""

from __future__ import annotations

import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ingest import load

BODY_BYTES = 55_000
IMAGES = 8
STOP_SECONDS = 30
APP_ROWS = 200


def lakeloop(clients: int, seconds: float, turn: int) -> dict[str, Any]:
    with _folder() as folder, _lakeloop(_lake(folder)) as (port, process):
        return _measured(port, process, clients, seconds)


def peer(kind: str, clients: int, seconds: float, turn: int) -> dict[str, Any]:
    with _folder() as folder:
        command = [sys.executable, "-m", "benchmarks.ingest.durable_servers", kind, str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            time.sleep(0.3)
            return _measured(port, process, clients, seconds)
        finally:
            process.kill()
            process.wait()


def disk(seconds: float, turn: int) -> dict[str, float]:
    """Speed of the disk: 8 MB writes with fdatasync, and the latency of one 4 KB write with fdatasync."""
    with _folder() as folder:
        data = os.urandom(8 << 20)
        file = os.open(folder / "bytes", os.O_CREAT | os.O_WRONLY)
        written, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            os.write(file, data)
            os.fdatasync(file)
            written += len(data)
        rate = written / (time.perf_counter() - started)
        small = []
        for _ in range(500):
            os.write(file, data[:4096])
            before = time.perf_counter()
            os.fdatasync(file)
            small.append((time.perf_counter() - before) * 1e3)
        os.close(file)
    return {
        "mb_per_second": rate / 1e6,
        "events_per_second": rate / BODY_BYTES,
        "fdatasync_p50_ms": statistics.median(small),
        "fdatasync_p99_ms": float(np.quantile(small, 0.99)),
    }


def overload(rate: float | None, loads: list[float], seconds: float, turn: int) -> dict[str, Any]:
    options = [] if rate is None else ["--max-rate", str(rate)]
    result: dict[str, Any] = {"loads": {}}
    with _folder() as folder, _lakeloop(_lake(folder), *options) as (port, process), _Memory(process.pid) as memory:
        load.closed(port, 4, 1.0, _requests())  # a warm-up
        for offered in loads:
            time.sleep(1.0)
            figures = load.open_loop(port, offered, seconds, _requests()).figures()
            result["loads"][f"{offered:g}/s"] = figures | {"rss_gb": memory.now / 1e9}
    result["peak_rss_gb"] = memory.peak / 1e9
    return result


def beside(seconds: float, turn: int) -> dict[str, Any]:
    """Acknowledgements alone, then with the app open in a browser, then also with an embedding job."""
    result = {}
    for name, ui, embed in (("alone", False, False), ("app open", True, False), ("app open, embedding", True, True)):
        with _folder() as folder:
            uri = _lake(folder)
            if ui:
                _fill(uri, folder)
            options = ["--embed"] if embed else []
            with _lakeloop(uri, *options, ui=ui) as (port, process), _visitor(port, ui):
                time.sleep(8.0 if embed else 2.0)  # until the network is loaded and the page is drawn
                figures = _measured(port, process, 8, seconds)
                result[name] = {
                    k: {n: v[n] for n in ("accepted_per_second", "p50_ms", "p99_ms")} for k, v in figures.items()
                }
    return result


def fresh(events: int, turn: int) -> dict[str, Any]:
    """Seconds from acknowledgement until SQL and search see an event, at one event per second."""
    import json
    import urllib.request

    import lake

    seen: dict[str, list[float]] = {"SQL": [], "search": []}
    with _folder() as folder, _lakeloop(_lake(folder), "--embed") as (port, _):
        opened = lake.open(str(folder / "lake"))
        for number in range(events + 5):
            head, image, tail = _requests()()
            event = re.search(rb"Lakeloop-Event: (.*)\r\n\r\n", head)
            assert event is not None
            own = json.loads(event[1])["prediction_id"]
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/predictions", image + tail,
                {"Content-Type": "image/jpeg", "Lakeloop-Event": event[1].decode()},
            )  # fmt: skip
            urllib.request.urlopen(request).read()
            acknowledged = time.perf_counter()
            waits: dict[str, float] = {}
            while len(waits) < 2 and time.perf_counter() - acknowledged < 60:
                columns = opened.dataset("samples").schema.names
                vector = "emb_efficientnet_lite0"
                condition = f"prediction_id = '{own}'"
                for name, also in (("SQL", ""), ("search", f" AND {vector} IS NOT NULL")):
                    if name not in waits and (not also or vector in columns):
                        dataset = opened.dataset("samples")
                        if dataset.count_rows(condition + also):
                            waits[name] = time.perf_counter() - acknowledged
                time.sleep(0.02)
            if number >= 5:  # by now the network is loaded
                for name in seen:
                    seen[name].append(waits.get(name, 60.0))
            time.sleep(max(0.0, 1.0 - (time.perf_counter() - acknowledged)) + random.random() * 0.3)
    return {name: {"median": statistics.median(v), "most": max(v)} for name, v in seen.items()}


def drained(events: int, turn: int) -> dict[str, Any]:
    """Speed of the drainer alone, on photographs."""
    from lake import ids, open_lake
    from lake.spool import events as event_records
    from lake.spool.drain import drain
    from lake.spool.spool import Spool

    with _folder() as folder:
        lake = open_lake.create(str(folder / "lake"))
        spool = Spool(folder / "spool")
        request = _requests()
        for _ in range(events // 50):
            group = []
            for _ in range(50):
                _, image, tail = request()
                event = {"prediction_id": str(uuid.uuid4()), "model": "m", "label": "cat"}
                group.append(event_records.prediction(event, {}, ids.image_id(image + tail), image + tail, None))
            spool.put(group)
        started = time.perf_counter()
        report = drain(lake, spool)
        seconds = time.perf_counter() - started
        spool.close()
    assert report is not None
    return {"events": report.events, "events_per_second": report.events / seconds}


def _measured(port: int, process: subprocess.Popen[Any], clients: int, seconds: float) -> dict[str, Any]:
    request = _requests()
    load.closed(port, clients, min(1.0, seconds / 2), request)  # a warm-up
    measured = {}
    for name, count in (("many", clients), ("one", 1)):
        before = _cpu(process.pid)
        result = load.closed(port, count, seconds, request)
        used = _cpu(process.pid) - before
        measured[name] = result.figures() | {"server_cpu_us": used / max(1, result.accepted) * 1e6}
        if result.accepted != result.statuses.total():
            raise RuntimeError(f"not every request was accepted: {result.statuses}")
    return measured


def _requests() -> load.Request:
    """Requests with smooth random JPEGs, padded to 55 KB behind the end of the image."""
    import io

    from PIL import Image

    rng = np.random.default_rng(0)
    images = []
    for _ in range(IMAGES):
        soft = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        soft.save(out, "JPEG", quality=90)
        data = out.getvalue()
        images.append(data + os.urandom(max(0, BODY_BYTES - 16 - len(data))))
    return load.predictions(images)


def _lake(folder: Path) -> str:
    from lake import open_lake

    uri = str(folder / "lake")
    open_lake.create(uri, embedders=["efficientnet-lite0"])
    return uri


def _fill(uri: str, folder: Path) -> None:
    """Fills the lake with rows for the pages of the app."""
    from lake import open_lake
    from lake.ingest import ingest

    (folder / "in").mkdir()
    request = _requests()
    for number in range(APP_ROWS):
        _, image, tail = request()
        (folder / "in" / f"{number}.jpg").write_bytes(image + tail)
    ingest.ingest(open_lake.open(uri), folder / "in")


@contextmanager
def _lakeloop(uri: str, *options: str, ui: bool = False) -> Iterator[tuple[int, subprocess.Popen[Any]]]:
    command = [sys.executable, "-m", "search_app.cli.main", "serve", "--lake", uri, "--port", "0", *options]
    command += [] if ui else ["--no-ui"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = ""
        while "listens on" not in line:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield int(line.rsplit(":", 1)[1]), process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _visitor(port: int, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    ready, over = threading.Event(), threading.Event()

    def visit() -> None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            browser.new_page().goto(f"http://127.0.0.1:{port}/", wait_until="networkidle")
            ready.set()
            over.wait()
            browser.close()

    # Playwright keeps an event loop running in its thread, and the generator needs its own.
    thread = threading.Thread(target=visit)
    thread.start()
    try:
        if not ready.wait(60):
            raise RuntimeError("the app did not open")
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder on the measured disk, not in memory."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("LAKELOOP_BENCH_DISK")) as name:
        yield Path(name)


class _Memory:
    """Resident bytes of a process without its children, sampled ten times a second."""

    peak = now = 0

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/statm")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            try:
                self.now = int(self._file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except (OSError, IndexError):
                return
            self.peak = max(self.peak, self.now)


def _cpu(pid: int) -> float:
    """CPU seconds of a process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
