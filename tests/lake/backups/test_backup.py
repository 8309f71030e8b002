"""A backup holds what was acknowledged before it and restores to the same rows and bytes; a touched one is refused."""

import io
import json
import os
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lake
from lake import ids
from lake.backups import archive, backup, restore
from lake.errors import BadInput, CouldNot, NewerLake
from lake.open_lake import OpenLake
from lake.spool import events
from lake.spool.drain import drain
from lake.spool.spool import Spool
from lake.storage import migrations, schema
from lake.upkeep import backup_list, erasure, maintenance
from tests import pictures
from tests.conftest import MakeLake
from tests.lake import stock


@pytest.fixture(scope="module")
def _source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    new = lake.create(str(tmp_path_factory.mktemp("source") / "lake"), embedders=["x"])
    stock.bind(new)
    for start in range(0, 12, 3):
        stock.add(new, range(start, start + 3))
    stock.add(new, range(20, 22), size=100_000)
    stock.embed(new, range(12))
    (Path(new.uri) / "weights").mkdir()
    (Path(new.uri) / "weights/net.safetensors").write_bytes(b"weights")
    (Path(new.uri) / "queries").mkdir()
    (Path(new.uri) / "queries/a.jpg").write_bytes(b"somebody's upload")
    return Path(new.uri)


@pytest.fixture
def source(_source: Path, tmp_path: Path) -> OpenLake:
    return lake.open(str(shutil.copytree(_source, tmp_path / "source")))


def sent(spool: Spool, *numbers: int) -> list[str]:
    """Acknowledged events about one picture each; their image_ids."""
    files = [pictures.encoded(pictures.noise(n, 24, 16)) for n in numbers]
    spool.put([
        events.prediction({"prediction_id": stock.prediction_id(n), "model": "m", "label": "cat"}, {},
                          ids.image_id(f), f, None)
        for n, f in zip(numbers, files, strict=True)
    ])  # fmt: skip
    return [ids.image_id(f) for f in files]


@pytest.mark.parametrize("name", ["copy", "copy.tar"])
def test_a_restored_lake_is_the_same_lake(source: OpenLake, tmp_path: Path, name: str) -> None:
    report = backup.backup(source, tmp_path / "backups" / name)
    assert (tmp_path / "backups" / name).is_dir() == (name == "copy")
    checked = restore.verify(tmp_path / "backups" / name)
    assert (checked.sha256, checked.bytes, len(checked.files)) == (report.sha256, report.bytes, report.files)
    restored = restore.restore(tmp_path / "backups" / name, str(tmp_path / "new"))
    assert (restored.waiting, restored.erased, restored.bytes) == (0, 0, report.bytes)
    again = lake.open(str(tmp_path / "new"))
    assert stock.contents(again, "audit") == stock.contents(source, "audit")
    assert (Path(again.uri) / "weights/net.safetensors").read_bytes() == b"weights"
    assert not (Path(again.uri) / "queries").exists()
    assert {v: report.versions[v] for v in ("images", "samples")} == {
        v: again.version(v) for v in ("images", "samples")
    }
    assert [p.name for p in tmp_path.glob("**/*.part")] == []


def test_a_backup_during_ingest_has_everything_acknowledged_before(make_lake: MakeLake, tmp_path: Path) -> None:
    """Writers and a drainer go on; the restored lake has each acknowledged event once, and its bytes."""
    lk = make_lake()
    spool = Spool(Path(lk.uri) / "spool")
    over, acked = threading.Event(), []

    def write() -> None:
        number = 1_000
        while not over.is_set():
            acked.extend(sent(spool, number, number + 1))
            number += 2

    def drain_all() -> None:
        other = lake.open(lk.uri)
        while not over.is_set():
            drain(other, spool)

    threads = [threading.Thread(target=write), threading.Thread(target=drain_all)]
    for thread in threads:
        thread.start()
    try:
        while len(acked) < 20:
            over.wait(0.01)
        for turn in range(2):
            before = list(acked)
            backup.backup(lk, tmp_path / f"copy{turn}.tar")
    finally:
        over.set()
        for thread in threads:
            thread.join()
        spool.close()
    assert restore.restore(tmp_path / "copy1.tar", str(tmp_path / "new")).waiting == 0
    new = lake.open(str(tmp_path / "new"))
    names = new.scan("samples", ["image_id"])["image_id"].to_pylist()
    assert len(names) == len(set(names))
    assert set(before) <= set(names) <= set(acked)
    stored = {i.image_id for i in new.images(names) if ids.image_id(i.data) == i.image_id}
    assert stored == set(names)
    assert new.known("thumbnails", "image_id", names) == set(names)


def test_a_table_is_pinned_before_the_tables_it_refers_to() -> None:
    """What is written between two pins is there as a whole or dangles nowhere: a release has its gate and its run."""
    refers = {
        "releases": ["gates", "runs"],
        "gates": ["scores", "runs"],
        "metrics": ["runs"],
        "scores": ["runs", "images"],
        "runs": ["slices", "labels"],
        "slice_tags": ["slices"],
        "slices": ["slice_members"],
        "slice_members": ["labels"],
        "clusters": ["cluster_members"],
        "marks": ["searches"],
        "maps": ["map_points"],
        "reviews": ["samples"],
        "samples": ["images", "thumbnails"],
    }
    order = backup.pinned_order()
    assert sorted(order) == sorted(schema.TABLES)
    assert [(a, b) for a, names in refers.items() for b in names if order.index(a) > order.index(b)] == []


def test_events_waiting_in_several_spools_are_in_the_backup(lk: OpenLake, tmp_path: Path) -> None:
    names = []
    for number in range(2):
        spool = Spool(tmp_path / f"spool{number}")
        names += sent(spool, number)
        spool.close()
    report = backup.backup(lk, tmp_path / "copy", spools=[tmp_path / "spool0", tmp_path / "spool1"])
    assert report.spool_events == 2
    restored = restore.restore(tmp_path / "copy", str(tmp_path / "new"))
    assert (restored.drained, restored.waiting) == (2, 0)
    assert sorted(lake.open(str(tmp_path / "new")).scan("images", ["image_id"])["image_id"].to_pylist()) == sorted(
        names
    )
    assert not (tmp_path / "new/spool-2").exists()


def test_an_event_whose_file_was_drained_meanwhile_is_in_the_tables(lk: OpenLake, tmp_path: Path, monkeypatch) -> None:
    """The worst moment: the drainer takes everything between the copy of the spool's rows and that of its files."""
    spool = Spool(Path(lk.uri) / "spool")
    image = sent(spool, 1)
    spool.close()
    open_segments, calls = backup._open_segments, []

    def late(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:  # after the rows were copied
            again = Spool(Path(lk.uri) / "spool")
            drain(lk, again)
            again.close()
        elif len(calls) == 1:
            return  # nothing was open by then
        open_segments(*arguments)

    monkeypatch.setattr(backup, "_open_segments", late)
    assert backup.backup(lk, tmp_path / "copy").spool_events == 0
    restore.restore(tmp_path / "copy", str(tmp_path / "new"))
    assert lake.open(str(tmp_path / "new")).known("images", "image_id", image) == set(image)


def test_tagged_versions_are_in_the_backup(source: OpenLake, tmp_path: Path) -> None:
    source.dataset("samples").tags.create("training", 3)
    rows = source.dataset("samples", 3).count_rows()
    maintenance.maintain(source)
    backup.backup(source, tmp_path / "copy.tar")
    restore.restore(tmp_path / "copy.tar", str(tmp_path / "new"))
    new = lake.open(str(tmp_path / "new"))
    assert new.tags("samples") == {"training": 3}
    assert new.dataset("samples", 3).count_rows() == rows
    assert stock.contents(new, "audit") == stock.contents(source, "audit")


def test_older_versions_are_not_in_the_backup(source: OpenLake, tmp_path: Path) -> None:
    report = backup.backup(source, tmp_path / "copy")
    assert report.bytes < stock.size(Path(source.uri)) - stock.size(tmp_path / "copy") // 2
    assert len(list((tmp_path / "copy/images.lance/_versions").iterdir())) == 1


def test_backups_are_remembered(source: OpenLake, tmp_path: Path) -> None:
    reports = [backup.backup(source, tmp_path / name) for name in ("a", "b.tar")]
    assert [(Path(b["path"]), b["sha256"]) for b in backup_list.read(source)] == [
        (Path(m.path), m.sha256) for m in reports
    ]
    assert source.sql("SELECT target FROM audit WHERE action = 'backup'").num_rows == 2


# Refusals ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backed_up(_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same small backup as a folder and as a tar."""
    root = tmp_path_factory.mktemp("made")
    small = lake.create(str(root / "lake"))
    stock.add(small, [1])
    spool = Spool(root / "lake/spool")
    sent(spool, 7)
    spool.close()
    backup.backup(small, root / "copy")
    backup.backup(small, root / "copy.tar")
    return root


@settings(max_examples=100)
@given(st.data())
def test_one_changed_byte_anywhere_in_a_folder_is_seen(backed_up: Path, data: st.DataObject) -> None:
    files = sorted(p for p in (backed_up / "copy").rglob("*") if p.is_file() and p.stat().st_size)
    path = data.draw(st.sampled_from(files))
    at = data.draw(st.integers(0, path.stat().st_size - 1))
    with changed(path, at, data.draw(st.integers(1, 255))), pytest.raises((BadInput, NewerLake)):
        restore.verify(backed_up / "copy")


@settings(max_examples=100)
@given(st.data())
def test_one_changed_byte_anywhere_in_a_tar_is_seen(backed_up: Path, data: st.DataObject) -> None:
    tar = backed_up / "copy.tar"
    at = data.draw(st.integers(0, tar.stat().st_size - 1))
    with changed(tar, at, data.draw(st.integers(1, 255))), pytest.raises((BadInput, NewerLake)):
        restore.verify(tar)


@settings(max_examples=40)
@given(st.data())
def test_a_part_of_a_tar_is_refused(backed_up: Path, data: st.DataObject) -> None:
    whole = (backed_up / "copy.tar").read_bytes()
    # Zeros at the end are no part of it.
    at = data.draw(st.integers(0, len(whole.rstrip(b"\0")) - 1))
    part = backed_up / "part.tar"
    part.write_bytes(whole[:at])
    with pytest.raises(BadInput, match=r"damaged|no whole backup"):
        restore.verify(part)


class changed:
    """One byte of a file is another for a while."""

    def __init__(self, path: Path, at: int, by: int) -> None:
        self.path, self.at, self.by = path, at, by

    def __enter__(self) -> None:
        self.flip()

    def __exit__(self, *_: object) -> None:
        self.flip()

    def flip(self) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.at)
            byte = file.read(1)[0] ^ self.by
            file.seek(self.at)
            file.write(bytes([byte]))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda root: (root / "images.lance/extra").write_bytes(b"x"), "images.lance/extra is not on its list"),
        (lambda root: next((root / "images.lance/data").glob("*.lance")).unlink(), "is missing"),
        (lambda root: (root / archive.LIST_HASH).unlink(), "manifest.sha256 is missing"),
        (lambda root: (root / archive.LIST).unlink(), "manifest.json is missing"),
        (lambda root: (root / "link").symlink_to("/etc/passwd"), "link is not a plain file"),
        (lambda root: (root / "folder").symlink_to("/etc"), "folder is a link"),
        (lambda root: os.mkfifo(root / "pipe"), "pipe is not a plain file"),
        (lambda root: (root / "a\\b").write_bytes(b"x"), "has a file named"),
        (lambda root: (root / archive.LIST).write_text("{}"), "manifest.json does not match manifest.sha256"),
        (lambda root: relisted(root, "[]"), "manifest.json cannot be read"),
        (lambda root: relisted(root, '{"files": []}'), "lacks its format"),
    ],
)
def test_a_changed_backup_folder_is_refused(backed_up: Path, tmp_path: Path, harm, message: str) -> None:
    shutil.copytree(backed_up / "copy", tmp_path / "copy")
    harm(tmp_path / "copy")
    with pytest.raises(BadInput, match=message.replace(".", r"\.")):
        restore.restore(tmp_path / "copy", str(tmp_path / "new"))
    assert not list(tmp_path.glob("new*"))


def relisted(root: Path, text: str) -> None:
    """A list that goes with its hash: whoever can change one can change both."""
    import hashlib

    (root / archive.LIST).write_text(text)
    (root / archive.LIST_HASH).write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  {archive.LIST}\n")


def test_a_hash_kept_elsewhere_shows_that_the_list_was_changed(backed_up: Path, tmp_path: Path) -> None:
    shutil.copytree(backed_up / "copy", tmp_path / "copy")
    sha256 = restore.verify(backed_up / "copy").sha256
    facts = json.loads((tmp_path / "copy" / archive.LIST).read_text())
    relisted(tmp_path / "copy", json.dumps(facts | {"lake": "another"}))
    restore.verify(tmp_path / "copy")
    with pytest.raises(BadInput, match="is another backup than expected"):
        restore.verify(tmp_path / "copy", sha256)
    assert restore.verify(backed_up / "copy", sha256.upper()).sha256 == sha256


def entry(name: str, **changes: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        entry("../outside"),
        entry("a/../../outside"),
        entry("/tmp/outside"),
        entry("a//b"),
        entry("./a"),
        entry(".."),
        entry("a\\..\\b"),
        entry("C:evil"),
        entry("nul\x01"),
        entry("manifest.json/a"),
        entry("images.lance"),
        entry("embedders.lance/_versions"),
        entry("a" * 300),
        entry("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("link", type=tarfile.LNKTYPE, linkname="manifest.json"),
        entry("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("block", type=tarfile.BLKTYPE),
        entry("pipe", type=tarfile.FIFOTYPE),
        entry("folder", type=tarfile.DIRTYPE),
    ],
    ids=lambda e: e.name[:20] + str(e.type),
)
@pytest.mark.parametrize("outside", ["first", "last"])
def test_no_name_in_a_tar_leads_out_of_it(
    backed_up: Path, tmp_path: Path, hostile: tarfile.TarInfo, outside: str
) -> None:
    bad = tmp_path / "in" / "bad.tar"
    bad.parent.mkdir()
    with tarfile.open(bad, "w") as out, tarfile.open(backed_up / "copy.tar") as good:
        data = b"evil" if hostile.isreg() else b""
        hostile.size = len(data)
        if outside == "first":
            out.addfile(hostile, io.BytesIO(data))
        for member in good:
            out.addfile(member, good.extractfile(member))
        if outside == "last":
            out.addfile(hostile, io.BytesIO(data))
    with pytest.raises(BadInput):
        restore.restore(bad, str(tmp_path / "new"))
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert not Path("/tmp/outside").exists()


def test_a_file_twice_in_a_tar_is_refused(backed_up: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tar"
    with tarfile.open(bad, "w") as out, tarfile.open(backed_up / "copy.tar") as good:
        for member in [*good.getmembers(), good.getmembers()[0]]:
            out.addfile(member, good.extractfile(member))
    with pytest.raises(BadInput, match="exists twice"):
        restore.verify(bad)


@pytest.mark.parametrize("content", [b"", b"x" * 2_000, b"\0" * 10_240])
def test_a_file_that_is_not_a_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "no.tar").write_bytes(content)
    with pytest.raises(BadInput):
        restore.verify(tmp_path / "no.tar")
    with pytest.raises(BadInput, match="no backup at"):
        restore.verify(tmp_path / "nothing")


def test_a_backup_of_a_newer_lakeloop_is_refused(backed_up: Path, tmp_path: Path) -> None:
    shutil.copytree(backed_up / "copy", tmp_path / "copy")
    facts = json.loads((tmp_path / "copy" / archive.LIST).read_text())
    for change in ({"migrations": [*facts["migrations"], migrations.STEPS[-1][0] + 1]}, {"format": backup.FORMAT + 1}):
        relisted(tmp_path / "copy", json.dumps(facts | change))
        with pytest.raises(NewerLake, match="upgrade lakeloop"):
            restore.restore(tmp_path / "copy", str(tmp_path / "new"))
        assert not list(tmp_path.glob("new*"))


def test_backup_and_restore_never_overwrite_anything(backed_up: Path, source: OpenLake, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(BadInput, match="exists already"):
        restore.restore(backed_up / "copy", str(tmp_path / "full"))
    with pytest.raises(BadInput, match="exists already"):
        backup.backup(source, tmp_path / "full")
    (tmp_path / "half.part").mkdir()
    with pytest.raises(BadInput, match=r"half.part exists already, left by an interrupted run"):
        backup.backup(source, tmp_path / "half")
    with pytest.raises(BadInput, match=r"half.part exists already, left by an interrupted run"):
        restore.restore(backed_up / "copy", str(tmp_path / "half"))
    with pytest.raises(BadInput, match="inside the lake"):
        backup.backup(source, Path(source.uri) / "copy")
    (tmp_path / "empty").mkdir()
    restore.restore(backed_up / "copy", str(tmp_path / "empty"))
    assert lake.open(str(tmp_path / "empty")).dataset("images").count_rows() == 2


def test_lakes_on_object_storage_are_left_to_the_store(tmp_path: Path, backed_up: Path) -> None:
    with pytest.raises(CouldNot, match="object storage"):
        backup.backup(OpenLake("s3://bucket/lake"), tmp_path / "copy")
    with pytest.raises(CouldNot, match="object storage"):
        restore.restore(backed_up / "copy", "s3://bucket/lake")


def test_a_backup_that_fails_leaves_nothing(source: OpenLake, tmp_path: Path, monkeypatch) -> None:
    """A full disk half way, here."""
    add, calls = archive.Writer.add, []

    def full(*arguments: Any, **options: Any) -> int:
        calls.append(1)
        if len(calls) == 9:
            raise OSError(28, "No space left on device")
        return add(*arguments, **options)

    monkeypatch.setattr(archive.Writer, "add", full)
    for name in ("copy", "copy.tar"):
        calls.clear()
        with pytest.raises(OSError, match="No space left"):
            backup.backup(source, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
    assert backup_list.read(source) == []


def test_images_erased_since_the_backup_do_not_come_back(source: OpenLake, tmp_path: Path) -> None:
    backup.backup(source, tmp_path / "copy")
    erasure.forget(source, [stock.image_id(3)], reason="asked for")
    with_it = restore.restore(tmp_path / "copy", str(tmp_path / "with"))
    assert with_it.erased == 0
    without = restore.restore(tmp_path / "copy", str(tmp_path / "without"), forgotten_from=source)
    assert without.erased == 1
    new = lake.open(str(tmp_path / "without"))
    assert not new.known("images", "image_id", [stock.image_id(3)])
    assert list(new.erased([stock.image_id(3)])) == [stock.image_id(3)]
    data = stock.data(3)[64:128]
    assert not [p for p in (tmp_path / "without").rglob("*") if p.is_file() and data in p.read_bytes()]
    assert [p for p in (tmp_path / "with").rglob("*") if p.is_file() and data in p.read_bytes()]
