"""Every image gets its own vector, whatever else goes on, and none is computed twice."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from embeddings.backfill import backfill as module
from embeddings.backfill.backfill import Backfill, BackfillReport, backfill
from embeddings.backfill.vector_columns import store_vectors
from embeddings.embedders.embedder import Embedded, bind, record_of
from lake import ids, open_lake
from lake.analytics import summary
from lake.errors import CouldNot
from lake.images import workers
from lake.ingest import ingest
from lake.open_lake import OpenLake
from tests.embeddings.colour import MeanColour
from tests.lake import worker_functions
from tests.lake.prediction_rows import add
from tests.pictures import encoded, flat

COLUMN = "emb_mean_colour"
SCRIPT = """
import sys, time
from embeddings.backfill import backfill as module
from embeddings.embedders.embedder import record_of
from lake import open_lake
from tests.embeddings.colour import MeanColour
module.COMMIT_IMAGES, module.TASK_IMAGES = 4, 2
lake = open_lake.open(sys.argv[1])
write = module.store_vectors
def told(*arguments):
    written = write(*arguments)
    print(written, flush=True)
    time.sleep(0.05)
    return written
module.store_vectors = told
module.backfill(lake, record_of(lake, None), MeanColour(), workers=1)
"""


def colour(i: int) -> tuple[int, int, int]:
    return (10 + i % 16 * 15, 10 + i // 16 * 15, 200)


def fill(lk: OpenLake, root: Path, count: int, start: int = 0) -> None:
    """Images of one colour each."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        (root / f"{i:03}.png").write_bytes(encoded(flat(colour(i))))
    report = ingest.ingest(lk, root, workers=1)
    assert report.images_new == count


def run(lk: OpenLake, embedder: MeanColour | None = None, **options) -> BackfillReport:
    return backfill(lk, record_of(lk, None), embedder or MeanColour(), workers=1, **options)


def check(lk: OpenLake, missing: int = 0) -> None:
    """Every row has the vector of its own image's colour, read from the image's file."""
    rows = lk.scan("samples", ["image_id", COLUMN]).to_pylist()
    assert sum(row[COLUMN] is None for row in rows) == missing
    images = {image.image_id: image for image in lk.images(sorted({row["image_id"] for row in rows}))}
    for row in rows:
        if row[COLUMN] is not None:
            name = Path(str(images[row["image_id"]].source)).stem
            expected = np.array(colour(int(name)), float)
            assert np.allclose(row[COLUMN], expected / np.linalg.norm(expected), atol=1e-6)


def answer(lk: OpenLake, root: Path, *images: int) -> None:
    """A log with one answer an image."""
    names = [ids.image_id(encoded(flat(colour(i)))) for i in images]
    rows = [{"image_id": name, "label": "x", "id": str(lk.version("samples"))} for name in names]
    (root / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert ingest.ingest(lk, root / "log.jsonl", workers=1).predictions_new == len(images)


def late(lk: OpenLake, *images: int) -> None:
    """Rows without a vector, as of predictions that arrive in the moment in which the image gets its first one."""
    add(lk, [{"image_id": ids.image_id(encoded(flat(colour(i))))} for i in images])


def test_every_image_gets_its_vector_and_the_lake_knows_whose(colours: OpenLake, tmp_path: Path) -> None:
    fill(colours, tmp_path / "in", 20)
    report = run(colours)
    assert (report.embedder, report.embedded, report.failed, report.reasons) == ("mean-colour", 20, 0, {})
    assert report.images_per_second == pytest.approx(20 / report.seconds)
    check(colours)
    record = record_of(colours, "mean-colour")
    assert (record.dim, record.weights_sha256, record.licence) == (3, "c" * 64, "CC0-1.0")
    assert json.loads(str(record.preprocessing))["mode"] == "squash"


def test_a_second_run_finds_nothing_to_do(colours: OpenLake, tmp_path: Path) -> None:
    fill(colours, tmp_path / "in", 5)
    run(colours)
    embedder = MeanColour()
    assert (run(colours, embedder).embedded, embedder.seen) == (0, 0)


def test_an_empty_lake_is_embedded_at_once(colours: OpenLake) -> None:
    assert run(colours).embedded == 0
    assert record_of(colours, None).dim == 3


def test_a_repeated_image_copies_its_vector(colours: OpenLake, tmp_path: Path) -> None:
    fill(colours, tmp_path / "in", 6)
    run(colours)
    late(colours, 1, 3, 1)
    embedder = MeanColour()
    assert run(colours, embedder).embedded == 2
    assert embedder.seen == 0
    check(colours)


def test_an_image_with_several_rows_is_computed_once(colours: OpenLake, tmp_path: Path) -> None:
    fill(colours, tmp_path / "in", 3)
    answer(colours, tmp_path, 0, 1, 2)
    embedder = MeanColour()
    assert run(colours, embedder).embedded == embedder.seen == 3
    check(colours)


def test_an_image_that_cannot_be_embedded_is_named_and_tried_again_on_request(
    colours: OpenLake, tmp_path: Path, monkeypatch
) -> None:
    """Black has no direction. It neither stops nor shifts the others of its batch."""
    monkeypatch.setattr(module, "TASK_IMAGES", 4)
    fill(colours, tmp_path / "in", 6)
    black = [encoded(flat("black", width)) for width in (20, 30)]
    (tmp_path / "black").mkdir()
    for i, data in enumerate(black):
        (tmp_path / "black" / f"{i}.png").write_bytes(data)
    ingest.ingest(colours, tmp_path / "black", workers=1)
    for embedded, retry in ((6, False), (0, True)):
        report = run(colours, retry_failed=retry)
        assert (report.embedded, report.failed) == (embedded, 2)
        assert report.reasons == {ids.image_id(data): "the network gave no finite vector" for data in black}
    embedder = MeanColour()
    report = run(colours, embedder)
    assert (report.failed, report.failed_before, embedder.seen) == (0, 2, 0)
    (progress,) = summary.embedding_progress(colours, colours.embedders())
    assert [progress[n] for n in ("embedded", "missing", "failed")] == [6, 0, 2]
    check(colours, missing=2)


def test_an_image_that_kills_its_worker_fails_alone(colours: OpenLake, tmp_path: Path, monkeypatch) -> None:
    fill(colours, tmp_path / "in", 6)
    deadly = encoded(flat("red")) + worker_functions.DEADLY
    (tmp_path / "deadly").mkdir()
    (tmp_path / "deadly" / "x.png").write_bytes(deadly)
    ingest.ingest(colours, tmp_path / "deadly", workers=1)
    pool = workers.WorkerPool
    monkeypatch.setattr(
        module, "WorkerPool", lambda function, count: pool("tests.lake.worker_functions:prepare_or_die", count)
    )
    report = run(colours)
    assert (report.embedded, report.failed) == (6, 1)
    assert "signal 11" in report.reasons[ids.image_id(deadly)]
    check(colours, missing=1)


def test_a_batch_of_broken_images_alone_reaches_no_embedder(colours: OpenLake, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "deadly").mkdir()
    (tmp_path / "deadly" / "x.png").write_bytes(encoded(flat("red")) + worker_functions.DEADLY)
    ingest.ingest(colours, tmp_path / "deadly", workers=1)
    pool = workers.WorkerPool
    monkeypatch.setattr(
        module, "WorkerPool", lambda function, count: pool("tests.lake.worker_functions:prepare_or_die", count)
    )
    assert run(colours).failed == 1


def test_after_a_kill_the_next_run_does_the_rest(colours: OpenLake, tmp_path: Path) -> None:
    fill(colours, tmp_path / "in", 24)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, colours.uri], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    committed = sum(int(process.stdout.readline()) for _ in range(3))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    half = open_lake.open(colours.uri)
    done = half.dataset("samples").count_rows(f"{COLUMN} is not null")
    assert 12 == committed <= done < 24
    embedder = MeanColour()
    assert run(half, embedder).embedded == embedder.seen == 24 - done
    check(half)


@pytest.mark.parametrize("many", [False, True])
def test_what_is_no_vector_is_a_failure_with_a_reason_and_is_never_stored(
    colours: OpenLake, tmp_path: Path, many: bool
) -> None:
    """The embedder of a user goes wrong in every way for one image of each batch, or for all."""
    fill(colours, tmp_path / "in", 8)

    class Wrong(MeanColour):
        def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
            batch = super().embed_batch(images)
            wrong = np.flatnonzero((np.stack(images)[:, 0, 0, 0] < 60) | many)
            for row, value in zip(wrong.tolist(), [np.nan, np.inf, 0, -np.inf] * 2, strict=False):
                batch.vectors[row, 1 if value else slice(None)] = value
            return batch

    report = run(colours, Wrong())
    assert (report.embedded, report.failed) == ((0, 8) if many else (4, 4))
    assert set(report.reasons.values()) == {"its vector is not finite", "its vector is zero: it has no direction"}
    check(colours, missing=report.failed)
    assert run(colours, retry_failed=True).embedded == report.failed
    check(colours)


class OneShort(MeanColour):
    def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
        return Embedded(super().embed_batch(images).vectors[:, :2], np.arange(len(images)))


class Forgetful(MeanColour):
    def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
        return Embedded(super().embed_batch(images).vectors, np.zeros(len(images), int))


class Choosy(MeanColour):
    def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
        if any(image[0, 0, 0] == 25 for image in images):
            raise ZeroDivisionError("25")
        return super().embed_batch(images)


class Doubling(MeanColour):
    def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
        batch = super().embed_batch(images)
        return Embedded(batch.vectors.astype(np.float64) * 2, batch.kept)


@pytest.mark.parametrize(
    ("kind", "embedded", "reason"),
    [
        (OneShort, 0, "vectors of 4 x 2, its spec says n x 3"),
        (Forgetful, 0, "4 vectors for 4 images; `kept` must name the image of each"),
        (Choosy, 3, "the embedder failed: ZeroDivisionError: 25"),
        (Doubling, 4, ""),
    ],
)
def test_an_embedder_that_breaks_its_contract(
    colours: OpenLake, tmp_path: Path, kind: type[MeanColour], embedded: int, reason: str
) -> None:
    fill(colours, tmp_path / "in", 4)
    report = run(colours, kind())
    assert report.embedded == embedded
    assert all(reason in text for text in report.reasons.values())
    check(colours, missing=4 - embedded)


def test_an_embedder_that_fails_for_every_image_ends_the_run(
    colours: OpenLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_RAISED", 3)
    fill(colours, tmp_path / "in", 6)

    class Unset(MeanColour):
        def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
            raise FileNotFoundError("weights.bin")

    with pytest.raises(CouldNot, match=r"FileNotFoundError: weights.bin; it did so for 6 images in a row"):
        run(colours, Unset())
    assert run(colours).embedded == 6  # no image is to blame


def test_a_slow_network_is_committed_by_time(colours: OpenLake, tmp_path: Path, monkeypatch) -> None:
    """Stopped at any time, the run keeps all but the last seconds: here, all but the last task of two images."""
    monkeypatch.setattr(module, "TASK_IMAGES", 2)
    monkeypatch.setattr(module, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(module, "COMMIT_SHARE", 1e9)
    fill(colours, tmp_path / "in", 6)

    class Stopped(MeanColour):
        def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
            if self.seen == 4:
                raise KeyboardInterrupt
            return super().embed_batch(images)

    with pytest.raises(KeyboardInterrupt):
        run(colours, Stopped())
    check(colours, missing=2)


def test_two_runs_at_once_share_the_work(colours: OpenLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TASK_IMAGES", 2)
    monkeypatch.setattr(module, "CLAIM_IMAGES", 4)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)
    fill(colours, tmp_path / "in", 40)
    bind(colours, record_of(colours, None), MeanColour())
    met = threading.Barrier(2)

    class Met(MeanColour):
        def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
            if self.seen == 0:
                met.wait()  # both have looked, and each has claimed
            return super().embed_batch(images)

    embedders = [Met(), Met()]
    reports: dict[int, BackfillReport] = {}

    def embed(number: int) -> None:
        reports[number] = run(open_lake.open(colours.uri), embedders[number])

    threads = [threading.Thread(target=embed, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert embedders[0].seen + embedders[1].seen == 40
    assert [reports[n].embedded for n in range(2)] == [e.seen for e in embedders]
    assert [reports[n].by_others for n in range(2)] == [40 - e.seen for e in embedders]
    check(colours)


def test_of_two_runs_one_is_killed_and_the_other_finishes(
    colours: OpenLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.05)
    fill(colours, tmp_path / "in", 24)
    bind(colours, record_of(colours, None), MeanColour())
    slow = SCRIPT.replace("time.sleep(0.05)", "time.sleep(600)")
    process = subprocess.Popen(
        [sys.executable, "-c", slow, colours.uri],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert process.stdout is not None
    embedder = MeanColour()
    try:
        committed = int(process.stdout.readline())
        with Backfill(colours, record_of(colours, None), embedder, workers=1) as work:
            gaps = work.look()
            work.fill(gaps, gaps.image_id.to_pylist())
        assert (embedder.seen, len(work.busy)) == (0, 24 - committed)  # the other process has claimed all of them
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert run(colours, embedder).embedded == embedder.seen == 24 - committed
    check(colours)


def test_images_that_arrive_meanwhile_are_not_lost(colours: OpenLake, tmp_path: Path, monkeypatch) -> None:
    """Appends and backfill commit to one table at once; a third party embeds, too."""
    monkeypatch.setattr(module, "COMMIT_IMAGES", 4)
    monkeypatch.setattr(module, "TASK_IMAGES", 2)
    monkeypatch.setattr(ingest, "COMMIT_ROWS", 5)
    fill(colours, tmp_path / "in", 40)
    bind(colours, record_of(colours, None), MeanColour())
    failures: list[BaseException] = []

    def arriving() -> None:
        try:
            fill(open_lake.open(colours.uri), tmp_path / "more", 40, start=100)
        except BaseException as error:
            failures.append(error)

    def embedding() -> None:
        try:
            run(open_lake.open(colours.uri))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=arriving), threading.Thread(target=embedding)]
    for thread in threads:
        thread.start()
    run(colours)
    for thread in threads:
        thread.join()
    assert failures == []
    assert colours.dataset("samples").count_rows() == 80
    run(colours)
    check(colours)


def test_images_that_cannot_be_embedded_are_counted_apart(colours: OpenLake, tmp_path: Path) -> None:
    """One image's bytes were dropped, another is known not to decode: no run tries them."""
    fill(colours, tmp_path / "in", 5)
    names = [ids.image_id(encoded(flat(colour(i)))) for i in range(5)]
    colours.delete("images", f"image_id = '{names[0]}'")
    colours.dataset("samples").update({"image_status": "'it is broken'"}, where=f"image_id = '{names[1]}'")
    for embedded in (3, 0):
        report = run(colours)
        assert (report.embedded, report.failed, report.without_bytes, report.unreadable) == (embedded, 0, 1, 1)
    (progress,) = summary.embedding_progress(colours, colours.embedders())
    assert [progress[n] for n in ("embedded", "missing", "without_bytes", "unreadable")] == [3, 0, 1, 1]


def test_bytes_deleted_meanwhile_are_not_a_failure(colours: OpenLake, tmp_path: Path) -> None:
    fill(colours, tmp_path / "in", 3)
    with Backfill(colours, record_of(colours, None), MeanColour(), workers=1) as work:
        gaps = work.missing.look()
        gone = ids.image_id(encoded(flat(colour(1))))
        colours.delete("images", f"image_id = '{gone}'")
        report = work.fill(gaps, gaps.image_id.to_pylist())
        assert (report.embedded, report.reasons) == (2, {})
        assert work.missing.look().counts() == {"waiting": 0, "unreadable": 0, "without_bytes": 1}


def test_an_image_without_bytes_copies_its_vector(colours: OpenLake, tmp_path: Path) -> None:
    fill(colours, tmp_path / "in", 2)
    run(colours)
    late(colours, 0)
    colours.delete("images", "true")
    report = run(colours)
    assert (report.embedded, report.without_bytes) == (1, 0)
    assert colours.dataset("samples").count_rows(f"{COLUMN} is null") == 0


def test_a_failed_commit_is_repeated_without_computing_again(
    colours: OpenLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(colours, tmp_path / "in", 3)
    embedder = MeanColour()

    def full(*_: object) -> int:
        raise CouldNot("the disk is full")

    with Backfill(colours, record_of(colours, None), embedder, workers=1) as work:
        gaps = work.missing.look()
        with monkeypatch.context() as broken:
            broken.setattr(module, "store_vectors", full)
            with pytest.raises(CouldNot):
                work.fill(gaps, gaps.image_id.to_pylist())
        assert (work.commit(), embedder.seen) == (3, 3)
    check(colours)


def test_vectors_from_elsewhere_go_into_rows_that_lack_one(colours: OpenLake, tmp_path: Path) -> None:
    fill(colours, tmp_path / "in", 3)
    record = bind(colours, record_of(colours, None), MeanColour())
    answer(colours, tmp_path, 0)
    names = [ids.image_id(encoded(flat(colour(i)))) for i in range(3)]
    red, green = np.array([1, 0, 0], np.float32), np.array([0, 1, 0], np.float32)
    assert store_vectors(colours, record.column, {names[0]: red, "0" * 64: red}) == 1
    assert store_vectors(colours, record.column, {names[0]: green, names[1]: green}) == 1
    assert store_vectors(colours, record.column, {}) == 0
    rows = colours.scan("samples", ["image_id", COLUMN]).to_pylist()
    assert sorted((names.index(r["image_id"]), r[COLUMN]) for r in rows) == [
        (0, [1, 0, 0]), (0, [1, 0, 0]), (1, [0, 1, 0]), (2, None),
    ]  # fmt: skip


def test_progress_counts_every_image(colours: OpenLake, tmp_path: Path) -> None:
    fill(colours, tmp_path / "in", 5)
    seen: list[int] = []
    run(colours, progress=seen.append)
    assert sum(seen) == 5


def test_images_are_read_in_groups_bounded_by_bytes() -> None:
    from lake.images.workers import grouped

    sizes = {"a": 5, "b": 5, "c": 1, "d": 100, "e": 1}
    assert list(grouped(list(sizes), sizes.__getitem__, max_items=2, max_bytes=10)) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(grouped([], sizes.__getitem__, max_items=2, max_bytes=10)) == []
