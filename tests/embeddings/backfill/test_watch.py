"""A watcher embeds what arrives, in the stated order, whatever else goes on, and says how far behind it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from embeddings.backfill import backfill, vector_columns, watch_process
from embeddings.backfill import watch as module
from embeddings.backfill.watch import Lag, watch
from embeddings.embedders.embedder import Embedded, bind, record_of
from lake import ids, open_lake
from lake.errors import BadInput, CouldNot
from lake.images import workers
from lake.ingest import ingest, sources
from lake.open_lake import OpenLake
from lake.storage import schema
from tests.embeddings.colour import MeanColour
from tests.lake import worker_functions
from tests.pictures import encoded, flat

COLUMN = "emb_mean_colour"


def colour(i: int) -> tuple[int, int, int]:
    return (10 + i % 16 * 15, 10 + i // 16 * 15, 200)


def picture(i: int) -> bytes:
    return encoded(flat(colour(i)))


def arrive(lk: OpenLake, *images: int, extra: bytes = b"") -> None:
    """Images of one colour each, in one commit."""
    root = Path(lk.uri).with_name(f"in{time.monotonic_ns()}")
    root.mkdir()
    for i in images:
        (root / f"{i:03}.png").write_bytes(picture(i) + extra)
    report = ingest.ingest_items(lk, sources.read(root, "folder"), workers=1)
    assert report.images_new == len(images)


def without(lk: OpenLake) -> int:
    names = lk.dataset("samples").schema.names
    return lk.dataset("samples").count_rows(f"{COLUMN} is null" if COLUMN in names else None)


def check(lk: OpenLake, images: Sequence[int]) -> None:
    """Each of the images has one row, with the vector of its colour."""
    rows = lk.scan("samples", ["image_id", COLUMN]).to_pylist()
    assert sorted(row["image_id"] for row in rows) == sorted(ids.image_id(picture(i)) for i in images)
    number = {ids.image_id(picture(i)): i for i in images}
    for row in rows:
        expected = np.array(colour(number[row["image_id"]]), float)
        assert np.allclose(row[COLUMN], expected / np.linalg.norm(expected), atol=1e-6)


class Watched:
    """A watcher in a thread; `lags` and `warnings` are its reports."""

    def __init__(self, lk: OpenLake, embedder: MeanColour | None = None, **options: Any) -> None:
        self.lags: list[Lag] = []
        self.warnings: list[str] = []
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self.embedder = embedder or MeanColour()
        self._arguments = (open_lake.open(lk.uri), record_of(lk, None), self.embedder)
        options = {"interval": 0.05, "workers": 1} | options
        self.thread = threading.Thread(target=self._run, args=(options,), daemon=True)

    def _run(self, options: dict[str, Any]) -> None:
        try:
            watch(*self._arguments, stop=self.stop, report=self.lags.append, warn=self.warnings.append, **options)
        except BaseException as error:
            self.error = error

    def until(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.lags[-3:]} {self.warnings} {self.error}"
            assert self.thread.is_alive(), self.error
            time.sleep(0.02)


@contextmanager
def watching(lk: OpenLake, embedder: MeanColour | None = None, **options: Any) -> Iterator[Watched]:
    watched = Watched(lk, embedder, **options)
    watched.thread.start()
    try:
        yield watched
    finally:
        watched.stop.set()
        watched.thread.join(20)
    assert not watched.thread.is_alive()
    assert watched.error is None


def test_images_that_arrive_get_a_vector(colours: OpenLake) -> None:
    with watching(colours) as watched:
        for start in range(0, 12, 4):
            arrive(colours, *range(start, start + 4))
            watched.until(lambda: without(colours) == 0)
    check(colours, range(12))
    assert watched.embedder.seen == 12
    assert sum(lag.embedded for lag in watched.lags) == 12
    assert watched.lags[-1] == Lag(waiting=0, oldest_seconds=0.0, embedded=watched.lags[-1].embedded)


def test_the_lag_counts_waiting_images_and_their_age(colours: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_IMAGES", 2)
    arrive(colours, 0)
    time.sleep(0.3)
    arrive(colours, 1, 2, 3)
    with watching(colours, order="newest") as watched:
        watched.until(lambda: bool(watched.lags) and watched.lags[-1].waiting == 0)
    first, last = watched.lags
    assert (first.waiting, first.embedded, last.waiting, last.embedded) == (2, 2, 0, 2)
    assert 0.3 <= first.oldest_seconds < 20
    assert last.oldest_seconds == 0.0


class Slow(MeanColour):
    """Remembers what it embedded when; `meanwhile` is called before each batch."""

    def __init__(self, meanwhile: Callable[[int], None]) -> None:
        super().__init__()
        self.batches: list[list[tuple[int, ...]]] = []
        self.meanwhile = meanwhile

    def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
        self.meanwhile(len(self.batches))
        self.batches.append([tuple(image[0, 0].tolist()) for image in images])
        return super().embed_batch(images)


@pytest.mark.parametrize("order", ["oldest", "newest"])
def test_new_images_follow_the_order(colours: OpenLake, monkeypatch: pytest.MonkeyPatch, order: Any) -> None:
    """Rounds of two images; four wait, and two more arrive during the first round."""
    monkeypatch.setattr(module, "ROUND_IMAGES", 2)
    for i in range(4):
        arrive(colours, i)
    late = open_lake.open(colours.uri)
    model = Slow(lambda batches: arrive(late, 4, 5) if batches == 0 else None)
    with watching(colours, model, order=order) as watched:
        watched.until(lambda: len(model.batches) == 3 and without(colours) == 0)
    rounds = [{colour(i) for i in pair} for pair in ([0, 1], [2, 3], [4, 5])]
    expected = rounds if order == "oldest" else [rounds[1], rounds[2], rounds[0]]
    assert [set(batch) for batch in model.batches] == expected


def test_a_round_ends_in_time(colours: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of one image and a second's work in each of them: a round is not all that waits."""
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(backfill, "TASK_IMAGES", 1)
    arrive(colours, *range(20))
    with watching(colours, Slow(lambda _: time.sleep(0.05))) as watched:
        watched.until(lambda: without(colours) == 0)
    assert len([lag for lag in watched.lags if lag.embedded]) > 1
    check(colours, range(20))


def test_a_failed_image_is_tried_once(colours: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image kills its worker, and black has no direction. Both neither stop the others nor come again."""
    pool = workers.WorkerPool
    monkeypatch.setattr(
        backfill, "WorkerPool", lambda function, count: pool("tests.lake.worker_functions:prepare_or_die", count)
    )
    arrive(colours, 0, 1)
    arrive(colours, 2, extra=worker_functions.DEADLY)
    root = Path(colours.uri).with_name("black")
    root.mkdir()
    (root / "black.png").write_bytes(encoded(flat("black")))
    ingest.ingest(colours, root, workers=1)
    with watching(colours) as watched:
        watched.until(lambda: bool(watched.lags) and watched.lags[-1].failed == 2)
        arrive(colours, 3)
        watched.until(lambda: without(colours) == 2)
        time.sleep(0.3)
    assert (watched.lags[-1].waiting, watched.lags[-1].failed) == (0, 2)
    assert watched.embedder.seen == 4


def test_a_temporary_failure_is_reported_and_retried(colours: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    store, failures = vector_columns.store_vectors, iter([CouldNot("the disk is full"), OSError("no answer")])

    def unsteady(*arguments: Any) -> int:
        if arguments[2] and (error := next(failures, None)):
            raise error
        return store(*arguments)

    monkeypatch.setattr(backfill, "store_vectors", unsteady)
    monkeypatch.setattr(module, "FIRST_BACKOFF_SECONDS", 0.1)
    arrive(colours, 0, 1)
    with watching(colours) as watched:
        watched.until(lambda: without(colours) == 0)
    assert watched.warnings == ["the disk is full; trying again in 0.1 s", "no answer; trying again in 0.2 s"]
    assert watched.embedder.seen == 2
    assert watched.lags[0].waiting == 2


def test_storage_may_go_away_and_come_back(colours: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    path, elsewhere = Path(colours.uri, "samples.lance"), Path(colours.uri, "elsewhere")
    monkeypatch.setattr(module, "FIRST_BACKOFF_SECONDS", 0.1)
    with watching(colours) as watched:
        watched.until(lambda: bool(watched.lags))
        path.rename(elsewhere)
        watched.until(lambda: bool(watched.warnings))
        elsewhere.rename(path)
        arrive(colours, 0)
        watched.until(lambda: without(colours) == 0)
    assert "Not found" in watched.warnings[0]


def test_a_permanent_failure_ends_it(colours: OpenLake) -> None:
    """The column is there already, for vectors of another length."""
    colours.add_column("samples", pa.field(COLUMN, schema.vector_type(5)))
    watched = Watched(colours)
    watched.thread.start()
    watched.thread.join(20)
    assert isinstance(watched.error, BadInput)
    assert watched.warnings == []


def test_it_commits_computed_vectors_when_stopped(colours: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill, "TASK_IMAGES", 1)
    arrive(colours, *range(6))
    watched = Watched(colours, Slow(lambda batches: watched.stop.set() if batches == 2 else None))
    watched.thread.start()
    watched.thread.join(20)
    assert watched.error is None
    assert (watched.embedder.seen, without(colours)) == (3, 3)


def test_concurrent_writers_lose_nothing(colours: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUND_IMAGES", 5)
    monkeypatch.setattr("embeddings.backfill.vector_columns.WASTE_BYTES", 0)
    arrive(colours, *range(30))
    bind(colours, record_of(colours, None), MeanColour())
    with watching(colours, order="newest", interval=0.01) as watched:
        for start in range(30, 60, 5):
            arrive(colours, *range(start, start + 5))
            colours.commit("samples", lambda: colours.dataset("samples").optimize.compact_files())
            colours.commit(
                "samples", lambda: colours.dataset("samples").update({"model": "'m'"}, where="model is null")
            )
        watched.until(lambda: without(colours) == 0)
    check(colours, range(60))
    assert watched.warnings == []


SCRIPT = """
import sys, threading
from embeddings.backfill import vector_columns as columns, watch
from embeddings.embedders.embedder import record_of
from lake import open_lake
from tests.embeddings.colour import MeanColour
watch.ROUND_IMAGES, columns.WASTE_BYTES = 4, 0
lake = open_lake.open(sys.argv[1])
watch.watch(lake, record_of(lake, None), MeanColour(), stop=threading.Event(), workers=1,
            report=lambda lag: print(lag.embedded, flush=True))
"""


def test_after_a_kill_the_next_watcher_continues(colours: OpenLake) -> None:
    """Killed in the middle of a round, twice, while it moves rows; in the end every vector is there and right."""
    arrive(colours, *range(48))
    done = 0
    for rounds in (2, 3):
        command = [sys.executable, "-c", SCRIPT, colours.uri]
        environment = os.environ | {"PYTHONPATH": os.getcwd()}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            done += sum(int(process.stdout.readline()) for _ in range(rounds))
            process.send_signal(signal.SIGKILL)
        assert 48 - without(open_lake.open(colours.uri)) >= done
    with watching(colours) as watched:
        watched.until(lambda: without(colours) == 0)
    assert watched.embedder.seen <= 48 - done
    check(colours, range(48))


@pytest.fixture
def environment(installed: None) -> dict[str, str]:
    """For processes that are to know mean-colour, too."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p and "site-packages" not in p)}


def test_the_command_embeds_until_it_is_stopped(colours: OpenLake, environment: dict[str, str]) -> None:
    """SIGTERM ends it with exit code 0; every line of stdout is the lag as JSON."""
    arrive(colours, *range(3))
    command = [sys.executable, "-m", "search_app.cli.main", "embed", "--watch", "--json", "--lake", colours.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        first = json.loads(run.stdout.readline())
        arrive(colours, 3)
        second = json.loads(run.stdout.readline())
        run.send_signal(signal.SIGTERM)
        rest, output = run.communicate(timeout=20)
    assert (run.returncode, rest) == (0, "")
    assert (first["embedded"], second["embedded"], second["waiting"], second["failed"]) == (3, 1, 0, 0)
    assert output.splitlines() == ["embedding new images with mean-colour, oldest first; Ctrl-C ends it"]
    check(colours, range(4))
    assert colours.scan("audit", ["action", "target", "detail"]).to_pylist() == [
        {"action": "embed", "target": "mean-colour", "detail": '{"watch": "oldest"}'}
    ]


def test_a_server_s_watcher_ends_with_it(colours: OpenLake, environment: dict[str, str]) -> None:
    """It deafens itself to Ctrl-C, which is for the server, and ends when nobody holds its stdin any more."""
    arrive(colours, 0)
    command = watch_process.arguments(colours.uri, order="newest")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        assert run.stdout is not None
        assert json.loads(run.stdout.readline())["embedded"] == 1
        run.send_signal(signal.SIGINT)
        arrive(colours, 1)
        assert json.loads(run.stdout.readline())["embedded"] == 1
        output = run.communicate(timeout=20)
    assert (run.returncode, output) == (0, ("", ""))
    check(colours, range(2))


def test_a_server_s_watcher_reports_why_it_fails(lk: OpenLake) -> None:
    with subprocess.Popen(
        watch_process.arguments(lk.uri), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None
        output = run.stderr.read()
        assert (run.wait(20), output.count("\n")) == (2, 1)  # with its stdin still open
    assert "the lake has no embedder" in output


def test_the_lag_is_printed_when_it_falls_behind_and_catches_up(capsys: pytest.CaptureFixture[str]) -> None:
    tell = watch_process.LagPrinter()
    tell(Lag(3, 1.0, 2))
    tell(Lag(1, 2.0, 2))
    tell(Lag(4_000, 31.0, 5, failed=1))
    tell(Lag(3_000, 50.0, 5, failed=1))
    tell(Lag(0, 0.0, 3_000, failed=1))
    assert capsys.readouterr().err.splitlines() == [
        "embedded 2; 3 wait, the oldest for 1 s",
        "embedded 7; 4,000 wait, the oldest for 31 s; 1 failed",
        "embedded 3,005; 0 wait; 1 failed",
    ]
