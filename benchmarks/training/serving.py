"""`serving`: acknowledgement latency while a registered model predicts, and predictions per second.

Events come at a fixed rate in an open loop: a latency counts from the time when the event was due. Meanwhile four
clients request predictions of EfficientNet-Lite0 in closed loops: once from a separate process with one thread and low
priority, as in the server, and once from a thread of the server with all cores. There are no peers.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness.rounds import ROOT, Options
from benchmarks.ingest import load

PARTS = ("serving",)
RATE, CLIENTS, IMAGES = 50.0, 4, 8
# The server closes connections that were idle for five seconds.
CONNECTIONS = 32
MODEL = "cells"
_READY = re.compile(r"lakeloop listens on http://127\.0\.0\.1:(\d+)")


def measure(options: Options) -> dict[str, Any]:
    seconds, rounds = (6.0, 1) if options.quick else (20.0, options.rounds or 3)
    folder = options.work / "lake"
    _prepare(folder)
    images = [_jpeg(number) for number in range(IMAGES)]
    figures: dict[str, list[dict[str, Any]]] = {"events alone": [], "beside a process": [], "beside a thread": []}
    for _ in range(rounds):
        for name in figures:
            figures[name].append(_round(folder, images, name, seconds))
    document: dict[str, Any] = {
        name: {key: float(np.median([round_[key] for round_ in results])) for key in results[0]}
        for name, results in figures.items()
    }
    alone, process, thread = document.values()
    ratios = {
        "p99 of acknowledgements: beside a process / alone": process["ack_p99_ms"] / alone["ack_p99_ms"],
        "p99 of acknowledgements: beside a thread / beside a process": thread["ack_p99_ms"] / process["ack_p99_ms"],
        "predictions a second: thread / process": thread["predictions_per_second"] / process["predictions_per_second"],
    }
    setting = {"events_per_second": RATE, "clients": CLIENTS, "seconds": seconds, "rounds": rounds}
    return {
        "ours": document["beside a process"],
        "peers": {},
        "ratios": ratios,
        "figures": document | {"setting": setting},
    }


def _round(folder: Path, images: list[bytes], name: str, seconds: float) -> dict[str, Any]:
    with _server(folder, in_thread=name == "beside a thread") as port:
        results: list[load.Result] = []
        if name != "events alone":
            _load_model(port, images[0])
            model_load = threading.Thread(
                target=lambda: results.append(load.closed(port, CLIENTS, seconds, _prediction_requests(images)))
            )
            model_load.start()
        acknowledged = load.open_loop(port, RATE, seconds, load.predictions(images), CONNECTIONS).figures()
        if name != "events alone":
            model_load.join()
    figures = {
        "ack_p50_ms": acknowledged["p50_ms"],
        "ack_p99_ms": acknowledged["p99_ms"],
        "acks_per_second": acknowledged["accepted_per_second"],
    }
    if results:
        predicted = results[0].figures()
        figures |= {"answer_p50_ms": predicted["p50_ms"], "answer_p99_ms": predicted["p99_ms"]}
        figures["predictions_per_second"] = predicted["accepted_per_second"]
    return figures


def _load_model(port: int, image: bytes) -> None:
    url = f"http://127.0.0.1:{port}/v1/models/{MODEL}:predict"
    request = urllib.request.Request(url, image, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=120) as response:
        response.read()


def _prediction_requests(images: list[bytes]) -> load.Request:
    """Requests for a prediction; a counter after the end of the image makes each different."""
    sent = 0

    def request() -> list[bytes]:
        nonlocal sent
        sent += 1
        data = images[sent % len(images)]
        head = f"POST /v1/models/{MODEL}:predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
        return [f"{head}Content-Length: {len(data) + 8}\r\n\r\n".encode(), data, sent.to_bytes(8, "big")]

    return request


def _jpeg(number: int) -> bytes:
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    out = io.BytesIO()
    small.resize((640, 480), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def _prepare(folder: Path) -> None:
    """Makes a lake whose promoted model `cells` is EfficientNet-Lite0 with a random head."""
    from lake import open_lake
    from training.data.augmentation import Preparation
    from training.models import trained_model
    from training.registry import promotion, runs
    from training.registry.recipe import Recipe
    from training.tasks import task_registry

    lake = open_lake.create(str(folder))
    recipe, classes, task = Recipe(), ("cracked", "fine"), task_registry.get("classification")
    network = task.network(recipe.architecture, classes)
    run = runs.create(lake, MODEL, recipe, data={}, classes=classes)
    preparation = Preparation(
        task.side(recipe.architecture), task.geometry, {name: i for i, name in enumerate(classes)}
    )
    path = trained_model.save(runs.folder(lake, run.id), network, recipe, classes, preparation)
    promotion.promote(lake, runs.end(lake, run, "done", artifacts={"model": runs.artifact(lake, path)}).id)


@contextmanager
def _server(folder: Path, in_thread: bool) -> Iterator[int]:
    entry = "benchmarks.training.serving" if in_thread else "search_app.cli.main"
    words = [sys.executable, "-m", entry, "serve", "--lake", str(folder), "--no-ui", "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        log = ""
        while (match := _READY.search(log)) is None:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"the server did not start: {log[-2_000:]}")
            log += line
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield int(match[1])
        finally:
            process.terminate()
            process.wait(20)


def main(words: Sequence[str]) -> int:
    """Starts a server that runs models on a thread of its own process, with all cores."""
    from embeddings.embedders.torch_import import torch
    from search_app.backend import model_server
    from search_app.cli import main as cli
    from training.inference import served_model

    loaded: dict[str, served_model.Predictor] = {}

    def here(self: model_server.ModelServer, run: str, image_ids: list[str], images: list[Any]) -> Any:
        if run not in loaded:
            loaded[run] = served_model.Predictor(self._lake, run)
            torch().set_num_threads(len(os.sched_getaffinity(0)))
        return loaded[run].preparation, loaded[run].predictions(image_ids, images)

    model_server.ModelServer._run_model = here  # type: ignore[method-assign]
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
