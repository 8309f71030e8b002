"""What is erased is on no file any more, does not come back, and nobody else's rows are touched."""

import datetime as dt
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import lake
from lake import ids, slices
from lake.access import audit
from lake.backups import backup
from lake.errors import BadInput, LakeBusy
from lake.ingest import ingest
from lake.jobs import current, live_state, record
from lake.jobs.job import Starter
from lake.open_lake import OpenLake
from lake.spool import events
from lake.spool.drain import drain
from lake.spool.spool import Spool
from lake.storage import leader_lock, schema, store
from lake.upkeep import erasure, maintenance, purge
from tests import pictures
from tests.conftest import MakeLake
from tests.lake import prediction_rows, stock

pytestmark = pytest.mark.slow

ERASED = 3


def holding(root: Path, data: bytes) -> set[str]:
    """Files under `root` that contain any of the 64-byte blocks of `data`."""
    windows = [data[i : i + 64] for i in range(0, max(1, len(data) - 63), 64)]
    files = set()
    for path in root.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if any(window in content for window in windows):
            files.add(path.relative_to(root).as_posix())
    return files


def traces(number: int) -> dict[str, bytes]:
    """What of an image may be on the disk; its bytes are 100 KB, so that they lie in a file of their own."""
    return {
        "image": stock.data(number, 100_000),
        "small image": stock.data(number),
        "thumbnail": stock.jpeg(number),
        "vector": stock.vector(number).tobytes(),
    }


@pytest.fixture(scope="module")
def _full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images small and large, embedded, labelled, reviewed, sliced and clustered, in several commits."""
    lk = lake.create(str(tmp_path_factory.mktemp("full") / "lake"), embedders=["x"])
    stock.bind(lk)
    stock.add(lk, range(10), source="camera/a")
    stock.add(lk, range(10, 13))
    stock.add(lk, range(20, 26), size=100_000, source="camera/b")
    stock.embed(lk, range(13))
    stock.embed(lk, range(20, 26), 100_000)
    image = stock.image_id(ERASED)
    prediction_rows.label(lk, (image, "cat", store.now()), (stock.image_id(4), "dog", store.now()))
    review: dict[str, Any] = {
        "event_id": "r",
        "prediction_id": stock.prediction_id(ERASED),
        "image_id": image,
        "verdict": "incorrect",
    }
    review |= {"timestamp": store.now(), "ingested_at": store.now(), "origin": "customer"}
    review["comment"] = "the comment of the person who is to be forgotten, and their address: 12 Somewhere Street"
    lk.insert("reviews", pa.Table.from_pylist([review], schema=schema.REVIEWS.arrow()))
    slices.create(lk, "odd", ids=[image, stock.image_id(5)])
    slices.create(lk, "other", ids=[stock.image_id(5)])
    members = [{"id": "t/0", "tree": "t", "node": "0", "image_id": stock.image_id(n)} for n in (3, 4)]
    members += [{"id": "t/1", "tree": "t", "node": "1", "image_id": image}]
    lk.insert("cluster_members", pa.Table.from_pylist(members, schema=schema.CLUSTER_MEMBERS.arrow()))
    node = {"tree": "t", "method": "kmeans", "embedder": "x", "predictions_version": 1, "noise": False}
    node |= {"medoids": [image], "created_at": store.now()}
    nodes = [node | {"id": "t/0", "node": "0", "size": 2}, node | {"id": "t/1", "node": "1", "size": 1}]
    lk.insert("clusters", pa.Table.from_pylist(nodes, schema=schema.CLUSTERS.arrow()))
    return Path(lk.uri)


@pytest.fixture
def full(_full: Path, tmp_path: Path, monkeypatch) -> OpenLake:
    monkeypatch.setattr(purge, "MOMENT_SECONDS", 0.3)
    return lake.open(str(shutil.copytree(_full, tmp_path / "full")))


@pytest.mark.parametrize(("number", "size"), [(ERASED, 2_000), (22, 100_000)])
def test_no_file_contains_any_part_of_the_erased_image(full: OpenLake, number: int, size: int) -> None:
    root = Path(full.uri)
    parts = {k: v for k, v in traces(number).items() if k != ("image" if size == 2_000 else "small image")}
    for name, data in parts.items():
        assert holding(root, data), f"the {name} was to be found before"
    report = erasure.forget(full, [stock.image_id(number, size)], reason="asked for")
    assert {name: holding(root, data) for name, data in parts.items()} == {name: set() for name in parts}
    assert report.complete
    assert (report.rows["images"], report.rows["thumbnails"], report.rows["samples"]) == (1, 1, 1)


def test_comments_labels_and_memberships_go_too(full: OpenLake) -> None:
    image = stock.image_id(ERASED)
    comment = b"12 Somewhere Street"
    assert holding(Path(full.uri), comment)
    report = erasure.forget(full, [image])
    assert not holding(Path(full.uri), comment)
    assert not any(full.known(name, "image_id", [image]) for name in erasure.TABLES)
    assert (report.slices, report.trees) == (["odd@1"], ["t"])
    odd = slices.get(full, "odd")
    assert (odd.size, slices.erased_count(full, odd)) == (2, 1)
    assert slices.members(full, slices.get(full, "odd")).to_pylist() == [stock.image_id(5)]
    nodes = full.sql("SELECT id, size, medoids FROM clusters").to_pylist()
    assert nodes == [{"id": "t/0", "size": 1, "medoids": [stock.image_id(4)]}]


def test_erasure_leaves_all_other_rows_unchanged(full: OpenLake) -> None:
    before = stock.contents(full, "forgotten", "audit", "slice_members", "clusters")
    erasure.forget(full, [stock.image_id(ERASED)])
    after = stock.contents(full, "forgotten", "audit", "slice_members", "clusters")
    for name, rows in after.items():
        left = [row for row in before[name] if stock.image_id(ERASED) not in str(row)]
        assert rows == left, name
    maintenance.maintain(full)
    assert stock.contents(full, "forgotten", "audit", "slice_members", "clusters") == after


def test_images_are_found_by_where_they_came_from(full: OpenLake) -> None:
    report = erasure.forget(full, source="camera/[b-z]*")
    assert report.image_ids == sorted(stock.image_id(n, 100_000) for n in range(20, 26))
    assert full.dataset("images").count_rows() == 13
    with pytest.raises(BadInput, match="nothing to erase"):
        erasure.forget(full)
    with pytest.raises(BadInput, match="'x' is not an image id"):
        erasure.forget(full, ["x"])


def test_the_audit_log_names_who_did_it(full: OpenLake) -> None:
    erasure.forget(full, [stock.image_id(1)], reason="court order 7")
    entry = full.sql("SELECT * FROM audit WHERE action = 'forget'").to_pylist()[0]
    assert (entry["target"], entry["user"]) == (stock.image_id(1), audit.os_user())
    assert "court order 7" in entry["detail"]
    stone = full.scan("forgotten", ["image_id", "reason"]).to_pylist()
    assert stone == [{"image_id": stock.image_id(1), "reason": "court order 7"}]


def test_an_erased_image_does_not_come_back_by_ingest(lk: OpenLake, tmp_path: Path) -> None:
    paths = pictures.folder(tmp_path / "in", 3)
    ingest.ingest(lk, tmp_path / "in", workers=1)
    image = ids.image_id(paths[1].read_bytes())
    erasure.forget(lk, [image])
    again = ingest.ingest(lk, tmp_path / "in", workers=1)
    assert (again.images_new, again.images_known) == (0, 2)
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    assert [(r["source"], r["reason"]) for r in again.rejected] == [
        (str(paths[1]), f"this image was erased on {today}")
    ]
    log = tmp_path / "log.csv"
    log.write_text(f"image_id,model,label\n{image},m,cat\n")
    assert "was erased on" in ingest.ingest(lk, log, workers=1).rejected[0]["reason"]


def test_an_image_is_erased_from_the_spool_and_does_not_come_back_through_it(lk: OpenLake, tmp_path: Path) -> None:
    files = [pictures.encoded(pictures.scene(n), "PNG") for n in range(3)]
    names = [ids.image_id(f) for f in files]

    def sent(spool: Spool, turn: int) -> None:
        spool.put([
            events.prediction({"prediction_id": stock.prediction_id(10 * turn + n), "model": "m", "label": "cat",
                               "source": f"line {n}"}, {}, names[n], files[n], None)
            for n in range(3)
        ])  # fmt: skip

    folder = tmp_path / "spool"
    first = Spool(folder)
    sent(first, 0)
    first.close()
    spool = Spool(folder)
    assert all(holding(folder, f) for f in files)
    report = erasure.forget(lk, source="line [01]", spools=[spool])
    assert report.image_ids == sorted(names[:2])
    assert report.spool_events == 2
    assert report.complete
    assert [bool(holding(folder, f)) for f in files] == [False, False, True]
    sent(spool, 1)
    spool.close()
    spool = Spool(folder)
    drain(lk, spool)
    spool.close()
    assert lk.scan("images", ["image_id"])["image_id"].to_pylist() == [names[2]]
    assert not any(holding(tmp_path, f) for f in files[:2])


def test_bytes_that_were_drained_go_from_a_server_s_open_file(lk: OpenLake, tmp_path: Path, monkeypatch) -> None:
    """The file a server appends to holds what was drained until it is sealed: erasure waits for that."""
    from lake.spool import segments

    monkeypatch.setattr(segments, "SEAL_SECONDS", 0.5)
    data = pictures.encoded(pictures.scene(1), "PNG")
    serving = Spool(tmp_path / "spool")
    event = {"prediction_id": stock.prediction_id(1), "model": "m", "label": "cat"}
    serving.put([events.prediction(event, {}, ids.image_id(data), data, None)])
    drain(lk, serving)
    assert holding(tmp_path / "spool", data)
    other = Spool(tmp_path / "spool")
    assert erasure.forget(lk, [ids.image_id(data)], spools=[other]).complete
    assert not holding(tmp_path, data)
    other.close()
    serving.close()


def test_tags_and_backups_that_still_hold_it_are_named(full: OpenLake, tmp_path: Path) -> None:
    image = stock.image_id(ERASED)
    backup.backup(full, tmp_path / "copy")
    full.dataset("images").tags.create("training", full.version("images"))
    full.dataset("labels").tags.create("empty", 1)
    report = erasure.forget(full, [image])
    assert report.tagged == ["images@training"]
    assert not report.complete
    assert [(Path(b["path"]), b["there"]) for b in report.backups] == [(tmp_path / "copy", True)]
    assert holding(Path(full.uri), stock.data(ERASED))
    full.dataset("images").tags.delete("training")
    assert erasure.forget(full, [image]).complete
    assert not holding(Path(full.uri), stock.data(ERASED))


def test_a_backup_made_before_it_came_is_not_named(full: OpenLake, tmp_path: Path) -> None:
    backup.backup(full, tmp_path / "copy")
    stock.add(full, [77])
    assert erasure.forget(full, [stock.image_id(77)]).backups == []


def test_an_unfinished_write_that_holds_it_is_named_until_nobody_can_commit_it(full: OpenLake) -> None:
    left = Path(full.table_uri("images")) / "data/.tmpKILLED"
    left.write_bytes(b"before" + stock.data(ERASED) + b"after")
    unrelated = left.with_name(".tmpOTHER")
    unrelated.write_bytes(stock.data(99))
    report = erasure.forget(full, [stock.image_id(ERASED)])
    assert (report.unfinished, report.complete) == ([str(left)], False)
    # Once erased, nobody knows any more what to look for: every young one may hold it.
    assert sorted(erasure.forget(full, [stock.image_id(ERASED)]).unfinished) == sorted(map(str, (left, unrelated)))
    os.utime(left, (time.time() - 90_000,) * 2)
    assert erasure.forget(full, [stock.image_id(ERASED)]).unfinished == [str(unrelated)]
    assert not left.exists()
    assert erasure.forget(full, [stock.image_id(ERASED)], alone=True).complete
    assert not unrelated.exists()


def test_a_killed_erasure_is_completed_by_the_next(full: OpenLake, monkeypatch) -> None:
    """Stopped before its n-th change of the lake, then run again: as if it had run once."""
    image, root = stock.image_id(ERASED), Path(full.uri)
    for fatal in (1, 2, 4, 7, 10):
        steps = 0
        commit = OpenLake.commit

        def stopping(self: OpenLake, name: str, write: object, fatal: int = fatal, commit=commit) -> object:
            nonlocal steps
            steps += 1
            if steps == fatal:
                raise KeyboardInterrupt
            return commit(self, name, write)

        with monkeypatch.context() as patch:
            patch.setattr(OpenLake, "commit", stopping)
            with pytest.raises(KeyboardInterrupt):
                erasure.forget(full, [image])
    assert erasure.forget(full, [image]).complete
    assert not holding(root, stock.data(ERASED))
    assert len(slices.members(full, slices.get(full, "odd"))) == 1
    assert full.scan("forgotten", ["image_id"])["image_id"].to_pylist() == [image]


def test_others_can_read_and_write_during_an_erasure(make_lake: MakeLake) -> None:
    lk = make_lake()
    stock.add(lk, range(30))
    other, over, written = lake.open(lk.uri), threading.Event(), []

    def write() -> None:
        number = 100
        while not over.is_set():
            written.extend(stock.add(other, [number]))
            assert len(list(other.images(written[-3:]))) == len(written[-3:])
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(4):
            assert erasure.forget(lk, [stock.image_id(number)]).complete
    finally:
        over.set()
        thread.join()
    left = [stock.image_id(n) for n in range(4, 30)] + written
    assert sorted(lk.scan("images", ["image_id"])["image_id"].to_pylist()) == sorted(left)
    assert len(list(lk.images(left))) == len(left)


def test_it_waits_while_another_process_maintains_the_lake(lk: OpenLake) -> None:
    with leader_lock.leader(lk), pytest.raises(LakeBusy):
        erasure.forget(lk, [stock.image_id(1)], wait=0.1)


def test_jobs_do_not_name_an_erased_image(make_lake: MakeLake) -> None:
    """Neither in rows, of this version or an older one, nor in logs, also while a worker writes to one."""
    lk = make_lake("worked on")
    stock.add(lk, range(4))
    erased, kept = stock.image_id(1), stock.image_id(2)
    job = record.submit(lk, "cluster", {"where": f"image_id IN ('{erased}', '{kept}')"}, Starter(user="ann"))
    job = record.started(lk, job)
    record.ended(lk, job, "failed", error=f"{erased}: no vector", result={"failed": [kept, erased]})
    other = record.submit(lk, "cluster", {"where": f"image_id = '{kept}'"}, Starter(user="ann"))
    assert current.get(lk, job.id).result == {"failed": [kept, erased]}
    log = live_state.log_file(lk, job.id)
    log.parent.mkdir(exist_ok=True)
    with log.open("ab", buffering=0) as worker:
        worker.write(f"failed {erased}: broken\nfailed {kept}: broken\n".encode())
        report = erasure.forget(lk, [erased], alone=True)
        worker.write(b"done\n")
    assert report.jobs == 4
    assert log.read_text() == f"failed {'x' * 64}: broken\nfailed {kept}: broken\ndone\n"
    found = current.get(lk, job.id)
    assert found.arguments == {"where": f"image_id IN ('{'x' * 64}', '{kept}')"}
    assert (found.error, found.result) == (f"{'x' * 64}: no vector", {"failed": [kept, "x" * 64]})
    assert current.get(lk, other.id).arguments == other.arguments
    left = {name for name in holding(Path(lk.uri), erased.encode()) if not name.startswith(("forgotten", "audit"))}
    assert left == set()
    assert erasure.forget(lk, [erased], alone=True).jobs == 0
