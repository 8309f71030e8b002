"""`pull`: megabytes per second of a slice pulled from a server, beside its parts: a byte stream, and a copy of files.

All move the same 20,000 images of 50 KB (--quick: 2,000) on one machine. `stream` reads as many bytes from the same
HTTP stack (uvicorn) and drops them: the limit of the loopback. `copy` copies a folder of the same files: the limit of
the disk. Both `pull` and `copy` end with the files synced to the disk, and begin when nothing waits to be written.
"""

from __future__ import annotations

import asyncio
import http.client
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.harness.contender import Stopwatch
from benchmarks.harness.rounds import ROOT, Contender, Options, estimate, noise, rounds, undisturbed

PARTS = ("main",)
IMAGES, IMAGES_QUICK = 20_000, 2_000
IMAGE_BYTES = 50_000
ROUNDS, ROUNDS_QUICK = 5, 3
CHUNK = 1 << 20


def measure(options: Options) -> dict[str, Any]:
    """Ratios are lakeloop's rate / the peer's: above 1, the pull is faster."""
    count = IMAGES_QUICK if options.quick else IMAGES
    uri, files = str(options.work / "lake"), options.work / "files"
    _make(uri, files, count)
    plain = multiprocessing.get_context("spawn").Process(target=_serve_bytes, args=(count * IMAGE_BYTES, options.work))
    plain.start()
    command = [sys.executable, "-m", "search_app.cli.main", "serve", "--lake", uri, "--no-ui", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert server.stderr is not None
        url = next(line.split()[-1] for line in server.stderr if " on http://" in line)
        port = _port(options.work)
        contenders = [
            Contender("pull", "benchmarks.ingest.pull:pull", {"url": url, "work": str(options.work)}),
            Contender("stream", "benchmarks.ingest.pull:stream", {"port": port}),
            Contender("copy", "benchmarks.ingest.pull:copy", {"files": str(files), "work": str(options.work)}),
        ]
        turns = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
        # The first round warms the page cache and is dropped.
        done = rounds(contenders, turns + 1, options.work)[1:]
    finally:
        server.terminate()
        plain.terminate()
        server.wait()
        plain.join()
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {"noise": noise(done)}}
    done = undisturbed(done)
    rates = [{name: process.result["megabytes_per_second"] for name, process in r.items()} for r in done]
    document["ours"]["megabytes_per_second"] = estimate(r["pull"] for r in rates)
    for peer in ("stream", "copy"):
        document["peers"][peer] = {"megabytes_per_second": estimate(r[peer] for r in rates)}
        document["ratios"][f"megabytes_per_second: pull / {peer}"] = estimate(r["pull"] / r[peer] for r in rates)
    slower = (r["pull"] / min(r["stream"], r["copy"]) for r in rates)
    document["ratios"]["megabytes_per_second: pull / the slower of both"] = estimate(slower)
    document["figures"]["cpu_seconds"] = {
        name: estimate(r[name].result["cpu_seconds"] for r in done) for name in ("pull", "stream", "copy")
    }
    return document


def pull(url: str, work: str, turn: int) -> dict[str, float]:
    """A contender: a pull into a new folder."""
    from lake.client import Client

    target = Path(work) / f"pulled {turn}"
    os.sync()
    with Client(url, spill=None) as client, Stopwatch() as watch:
        report = client.slice("all").pull(target)
    shutil.rmtree(target)
    return _figures(watch, report.bytes)


def stream(port: int, turn: int) -> dict[str, float]:
    """A contender: the bytes alone."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    size = 0
    with Stopwatch() as watch:
        connection.request("GET", "/")
        response = connection.getresponse()
        while part := response.read(4 * CHUNK):
            size += len(part)
    connection.close()
    return _figures(watch, size)


def copy(files: str, work: str, turn: int) -> dict[str, float]:
    """A contender: a copy of the files."""
    target = Path(work) / f"copied {turn}"
    size = sum(entry.stat().st_size for entry in os.scandir(files))
    os.sync()
    with Stopwatch() as watch:
        shutil.copytree(files, target, copy_function=shutil.copyfile)
        os.sync()
    shutil.rmtree(target)
    return _figures(watch, size)


def _figures(watch: Stopwatch, size: int) -> dict[str, float]:
    return {"megabytes_per_second": size / watch.seconds / 1e6, **watch.figures()}


def _make(uri: str, files: Path, count: int) -> None:
    """The lake with slice `all`, and the same images as files. Random bytes: nothing compresses them."""
    from lake import ids, open_lake, slices
    from lake.storage import image_rows, schema, store

    lake = open_lake.create(uri)
    files.mkdir()
    for start in range(0, count, 1_000):
        contents = [np.random.default_rng(number).bytes(IMAGE_BYTES) for number in range(start, start + 1_000)]
        names = [ids.image_id(data) for data in contents]
        moment = store.now()
        rows = [
            image_rows.image_row(name, data, "PNG", 24, 16, "benchmark", moment)
            for name, data in zip(names, contents, strict=True)
        ]
        bare = [
            {"prediction_id": ids.bare_prediction_id(name), "image_id": name, "source": "", "ingested_at": moment}
            for name in names
        ]
        lake.insert("images", image_rows.images_table(rows))
        lake.insert("samples", pa.Table.from_pylist(bare, schema=schema.SAMPLES.arrow()))
        for name, data in zip(names, contents, strict=True):
            (files / f"{name}.png").write_bytes(data)
    slices.create(lake, "all", where="true")


def _serve_bytes(size: int, work: Path) -> None:
    """Serves `size` bytes from a file, in parts, by uvicorn; writes its port to a file."""
    import uvicorn

    data = work / "bytes"
    data.write_bytes(np.random.default_rng(0).bytes(size))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        with data.open("rb") as file:
            while part := await asyncio.to_thread(file.read, CHUNK):
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    (work / "port").write_text(str(listener.getsockname()[1]))
    uvicorn.Server(uvicorn.Config(app, log_level="warning", loop="uvloop")).run(sockets=[listener])


def _port(work: Path) -> int:
    import time

    while not (work / "port").exists():
        time.sleep(0.05)
    return int((work / "port").read_text())
