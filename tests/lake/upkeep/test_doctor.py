"""A torn lake opens at its newest whole commit, and the doctor names what is wrong and the way out."""

import datetime as dt
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

import lake
from lake import ids, slices
from lake.errors import CouldNot, NotALake
from lake.ingest import ingest
from lake.open_lake import OpenLake
from lake.spool import events
from lake.spool.spool import Spool
from lake.storage import migrations, schema, store
from lake.storage.lance_files import quarantine, table_files
from lake.upkeep import at_start, doctor, erasure
from lake.upkeep.consistency import ConsistencyReport
from tests import pictures
from tests.conftest import MakeLake
from tests.lake import prediction_rows, stock

# What a power loss makes of a file that was written and not synced.
TORN = {
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "half": lambda data: data[: len(data) // 2],
    "short by one": lambda data: data[:-1],
    "garbage": lambda data: random.Random(0).randbytes(len(data)),
}


@pytest.fixture(scope="module")
def _filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every table has several commits."""
    lk = lake.create(str(tmp_path_factory.mktemp("filled") / "lake"), embedders=["x"])
    stock.bind(lk)
    for start in range(0, 9, 3):
        stock.add(lk, range(start, start + 3))
        image = stock.image_id(start)
        slices.create(lk, f"s{start}", ids=[image])
        prediction_rows.label(lk, (image, "cat", store.now()))
        for table in schema.TABLES.values():
            if table.name not in (
                "images",
                "thumbnails",
                "samples",
                "labels",
                "slices",
                "slice_members",
                "migrations",
            ):
                lk.insert(table.name, filler(table, start))
    stock.embed(lk, range(9))
    lk.delete("clusters", "true")
    lk.delete("forgotten", "true")
    lk.delete("embedders", "name <> 'x'")
    lk.delete("cluster_members", "true")
    return Path(lk.uri)


def filler(table: schema.Table, number: int) -> pa.Table:
    """A row that says nothing."""
    values = {pa.string(): f"n{number}", pa.int32(): number, pa.int64(): 0, pa.bool_(): False}
    values |= {pa.float32(): 0.0, schema.UTC: store.now()}
    row = {c.name: values.get(c.type, []) for c in table.columns if not c.nullable}
    return pa.Table.from_pylist([row], schema=table.arrow())


@pytest.fixture
def filled(_filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_filled, tmp_path / "lake"))


@pytest.mark.parametrize(
    ("name", "damage"), [(n, h) for n in schema.TABLES for h in TORN if h == "empty" or n == "images"]
)
def test_a_torn_newest_commit_is_put_aside(filled: Path, name: str, damage: str) -> None:
    before = {t: lake.open(str(filled)).version(t) for t in schema.TABLES}
    version, manifest = table_files.manifests(filled / f"{name}.lance")[0]
    assert version == before[name]
    data = TORN[damage](manifest.read_bytes())
    manifest.write_bytes(data)
    opened = lake.open(str(filled))
    assert len(opened.notices) == 1
    assert f"table {name}: version {version} is damaged" in opened.notices[0]
    aside = list((filled / "quarantine" / name).iterdir())
    assert [p.read_bytes() for p in aside] == [data]
    # A step that gives back a column the older version lacks is a commit of its own.
    assert {t: opened.version(t) for t in schema.TABLES if t != name} == {t: v for t, v in before.items() if t != name}
    assert opened.dataset(name, version - 1).count_rows() <= opened.dataset(name).count_rows()
    assert lake.open(str(filled)).notices == []


def test_several_torn_commits_of_several_tables(filled: Path) -> None:
    for name in ("images", "samples"):
        for _, manifest in table_files.manifests(filled / f"{name}.lance")[:3]:
            manifest.write_bytes(b"")
    opened = lake.open(str(filled))
    assert len(opened.notices) == 6
    stock.add(opened, [500])
    assert opened.known("images", "image_id", [stock.image_id(500)])


def test_a_column_that_the_torn_commit_brought_is_given_back(make_lake: MakeLake) -> None:
    """That an embedder has its column is recorded in another table, which was not torn."""
    lk = make_lake(embedders=["x"])
    stock.add(lk, range(3))
    stock.bind(lk)
    table_files.manifests(Path(lk.table_uri("samples")))[0][1].write_bytes(b"")
    opened = lake.open(lk.uri)
    assert opened.dataset("samples").schema.field("emb_x").type == schema.vector_type(stock.DIM)
    stock.embed(opened, range(3))
    assert opened.dataset("samples").count_rows("emb_x is not null") == 3


def test_without_any_whole_version_it_reports_so_and_moves_nothing(filled: Path) -> None:
    for _, manifest in table_files.manifests(filled / "labels.lance"):
        manifest.write_bytes(b"")
    with pytest.raises(CouldNot, match=r"no version of table 'labels'.*lakeloop restore"):
        lake.open(str(filled))
    assert not (filled / "quarantine").exists()
    report = doctor.examine(str(filled))
    assert (report.sound, {f.check for f in report.findings}) == (False, {"files", "opens"})


def test_a_manifest_that_no_power_loss_explains_is_left_for_the_doctor(filled: Path) -> None:
    version, manifest = table_files.manifests(filled / "images.lance")[0]
    rows = lake.open(str(filled)).dataset("images").count_rows()
    manifest.write_bytes(random.Random(0).randbytes(500) + table_files.MAGIC)
    for opens in (lake.open, at_start.mend):
        with pytest.raises(CouldNot, match=r"lakeloop doctor --repair"):
            opens(str(filled))
    assert not doctor.examine(str(filled)).sound
    report = doctor.examine(str(filled), repair=True)
    assert any(f"the manifest of version {version}" in sentence for sentence in report.mended)
    assert lake.open(str(filled)).dataset("images").count_rows() == rows


def test_a_torn_data_file_of_the_last_moments_is_set_aside_at_the_start_of_a_service(filled: Path) -> None:
    """Its manifest is whole: only who looks at every file sees it, the service at its start and the doctor."""
    rows = lake.open(str(filled)).dataset("images").count_rows()
    stock.add(lake.open(str(filled)), [400, 401])
    newest = max((filled / "images.lance/data").glob("*.lance"), key=lambda p: p.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:100])
    assert lake.open(str(filled)).notices == []
    assert checks_of(doctor.examine(str(filled)))[0] == "files"
    messages = at_start.mend(str(filled))
    assert len(messages) == 1
    assert "set aside 1 damaged file; 2 rows were in them" in messages[0]
    opened = lake.open(str(filled))
    assert opened.dataset("images").count_rows() == rows
    stock.add(opened, [400, 401])  # what the spool does with what was never synced
    assert checks_of(doctor.examine(str(filled), deep=True)) == ["set aside"]


def test_older_damage_stops_a_service_and_changes_nothing(filled: Path) -> None:
    """A disk that rots must not cost the commits of days, nor be written on."""
    opened = lake.open(str(filled))
    for _, manifest in table_files.manifests(filled / "images.lance")[1:]:
        os.utime(manifest, (time.time() - 3_600,) * 2)
    first = opened.dataset("images").get_fragments()[0].metadata.files[0].path
    (filled / "images.lance/data" / first).write_bytes(b"")
    version = opened.version("images")
    with pytest.raises(CouldNot, match=r"table 'images' .* is damaged: .*lakeloop doctor --repair"):
        at_start.mend(str(filled))
    assert lake.open(str(filled)).version("images") == version
    assert not doctor.examine(str(filled)).sound


def test_object_storage_is_left_alone() -> None:
    assert quarantine.quarantine("s3://bucket/lake") == []
    assert not quarantine.suspicious("s3://bucket/lake")


# The doctor ----------------------------------------------------------------------------------------------


def checks_of(report: ConsistencyReport, severity: str = "wrong") -> list[str]:
    return [f.check for f in report.findings if f.severity == severity]


@pytest.fixture
def sound(make_lake: MakeLake) -> OpenLake:
    lk = make_lake(embedders=["x"])
    stock.bind(lk)
    stock.add(lk, range(12))
    stock.embed(lk, range(12))
    slices.create(lk, "odd", ids=[stock.image_id(n) for n in range(3)])
    return lk


def test_a_sound_lake_has_no_findings(sound: OpenLake) -> None:
    report = doctor.examine(sound.uri, deep=True)
    assert report.findings == []
    assert report.sound
    assert report.checked["images_hashed"] == 12
    assert json.loads(json.dumps(report.as_dict()))["sound"] is True


def test_a_missing_lake_is_an_error_and_not_a_finding(tmp_path: Path) -> None:
    with pytest.raises(NotALake):
        doctor.examine(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("harm", "check"),
    [
        (lambda lk: lk.delete("images", f"image_id = '{stock.image_id(1)}'"), "predictions"),
        (lambda lk: lk.delete("thumbnails", f"image_id = '{stock.image_id(1)}'"), "thumbnails"),
        (lambda lk: lk.delete("slice_members", f"image_id = '{stock.image_id(1)}'"), "sets"),
        (lambda lk: stock.add(lk, [50], at=store.now() + dt.timedelta(days=1)), "clock"),
        (lambda lk: lk.dataset("images").drop_index("image_id_idx"), "indexes"),
        (lambda lk: twice(lk), "keys"),
    ],
)  # fmt: skip
def test_each_kind_of_harm_is_found_and_has_a_way_out(sound: OpenLake, harm, check: str) -> None:
    harm(sound)
    report = doctor.examine(sound.uri)
    assert set(checks_of(report)) == {check}
    assert all(f.remedy for f in report.findings)


def twice(lk: OpenLake) -> None:
    """The same row under one key, as no lakeloop writes it."""
    import lance

    row = lk.dataset("slices").to_table()
    lance.write_dataset(row, lk.dataset("slices"), mode="append")


def test_repair_makes_an_index_again_and_removes_repeats(sound: OpenLake) -> None:
    sound.dataset("images").drop_index("image_id_idx")
    twice(sound)
    report = doctor.examine(sound.uri, repair=True)
    assert len(report.mended) == 2
    assert doctor.examine(sound.uri).findings == []
    assert sound.dataset("slices").count_rows() == 1


def test_differing_rows_with_one_key_are_reported_and_not_repaired(sound: OpenLake) -> None:
    import lance

    row = sound.dataset("slices").to_table().to_pylist()[0] | {"definition": "another"}
    lance.write_dataset(
        pa.Table.from_pylist([row], schema=schema.SLICES.arrow()), sound.dataset("slices"), mode="append"
    )
    assert "keys" in checks_of(doctor.examine(sound.uri, repair=True))
    assert sound.dataset("slices").count_rows() == 2


def test_changed_bytes_are_found(sound: OpenLake) -> None:
    table = Path(sound.table_uri("images"))
    path = next((table / "data").glob("*.lance"))
    data = path.read_bytes()
    at = data.index(stock.data(5)[100:200])
    path.write_bytes(data[:at] + b"\0" * 100 + data[at + 100 :])
    report = doctor.examine(sound.uri, deep=True)
    assert checks_of(report) == ["bytes"]
    assert stock.image_id(5) in report.findings[0].what


def test_differences_that_the_lake_explains_are_not_findings(sound: OpenLake) -> None:
    stock.add(sound, [30, 31])
    for number, change in ((30, {"image_status": "'its bytes were not kept'"}), (31, {"image_share": "0.1"})):
        image = stock.image_id(number)
        sound.dataset("samples").update(change, where=f"image_id = '{image}'")
        sound.delete("images", f"image_id = '{image}'")
        sound.delete("thumbnails", f"image_id = '{image}'")
    assert doctor.examine(sound.uri).findings == []


def test_what_was_erased_and_is_back_is_found_and_erased_again(sound: OpenLake) -> None:
    erasure.forget(sound, [stock.image_id(7)])
    stock.add(sound, [7])  # no door lets it in: somebody wrote to the tables
    assert "erased" in checks_of(doctor.examine(sound.uri))
    assert doctor.examine(sound.uri, repair=True).mended
    assert doctor.examine(sound.uri).findings == []
    assert not sound.known("images", "image_id", [stock.image_id(7)])


def test_leftovers_are_noted_and_removed_on_repair(sound: OpenLake) -> None:
    left = Path(sound.table_uri("images")) / "data/.tmpKILLED"
    left.write_bytes(b"x" * 1_000)
    os.utime(left, (time.time() - 90_000,) * 2)
    (Path(sound.uri) / "backups.json.part").write_text("")
    report = doctor.examine(sound.uri)
    assert checks_of(report, "note") == ["leftovers", "leftovers"]
    assert report.sound
    doctor.examine(sound.uri, repair=True)
    assert not left.exists()


def test_the_state_of_a_spool_is_reported(lk: OpenLake, tmp_path: Path) -> None:
    data = pictures.encoded(pictures.scene(1), "PNG")
    spool = Spool(tmp_path / "spool")
    event = {"prediction_id": stock.prediction_id(1), "model": "m", "label": "cat"}
    spool.put([events.prediction(event, {}, ids.image_id(data), data, None)])
    assert checks_of(doctor.examine(lk.uri, spools=[spool])) == []
    for path in (tmp_path / "spool/segments").iterdir():
        path.write_bytes(b"")
    report = doctor.examine(lk.uri, spools=[spool])
    assert checks_of(report) == ["spool"]
    assert stock.prediction_id(1) in report.findings[0].what
    spool.close()


# Migrations ----------------------------------------------------------------------------------------------


NEW = ("reviews", "keys", "audit", "forgotten")


def as_of_the_first_migration(root: Path) -> None:
    """Takes from a lake what the second step gave it."""
    for name in NEW:
        shutil.rmtree(root / f"{name}.lance")
    old = OpenLake(str(root))
    old.dataset("samples").drop_columns(["image_status", "image_share"])
    old.delete("migrations", "number > 1")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("old")
    lk = lake.create(str(root / "lake"))
    pictures.folder(root / "in", 4)
    ingest.ingest(lk, root / "in", workers=1)
    as_of_the_first_migration(root / "lake")
    assert migrations.applied(OpenLake(lk.uri)) == [1]
    return root / "lake"


def test_an_old_lake_gets_what_it_lacks(old: Path, tmp_path: Path) -> None:
    opened = lake.open(str(shutil.copytree(old, tmp_path / "lake")))
    assert migrations.applied(opened) == [number for number, _, _ in migrations.STEPS]
    assert {"image_status", "image_share"} <= set(opened.dataset("samples").schema.names)
    assert doctor.examine(opened.uri, deep=True).findings == []


def opening_process(root: Path) -> subprocess.Popen[bytes]:
    """A process that opens the lake when it reads a line from stdin, and then writes a line."""
    code = (
        "import sys, lance, lake.storage.opening\n"
        "print(flush=True); sys.stdin.readline()\n"
        "lake.storage.opening.open(sys.argv[1]); print(flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    process.stdin.write(b"go\n")
    process.stdin.flush()
    return process


def kills(old: Path, tmp_path: Path, count: int, seed: int) -> int:
    """Opens copies of an old lake in processes that are killed at any moment; returns how many died half way."""
    rng = random.Random(seed)
    rows = {n: OpenLake(str(old)).dataset(n).count_rows() for n in ("images", "samples", "thumbnails")}
    half_way = 0
    for number in range(count):
        root = Path(shutil.copytree(old, tmp_path / str(number)))
        process = opening_process(root)
        tables, deadline = rng.randint(0, 4), time.monotonic() + 60
        while sum((root / f"{n}.lance").exists() for n in NEW) < tables:
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(rng.uniform(0.0, 0.01))
        process.kill()
        process.communicate()
        half_way += migrations.applied(OpenLake(str(root))) == [1] and (root / f"{NEW[0]}.lance").exists()
        opened = lake.open(str(root))
        assert migrations.applied(opened) == [number for number, _, _ in migrations.STEPS]
        assert opened.notices == []
        assert {n: opened.dataset(n).count_rows() for n in rows} == rows
        assert {"image_status", "image_share"} <= set(opened.dataset("samples").schema.names)
        for table in schema.TABLES.values():
            assert len(opened.dataset(table.name).describe_indices()) == len(table.indexed)
        shutil.rmtree(root)
    return half_way


def test_a_kill_during_a_migration_leaves_a_lake_that_opens(old: Path, tmp_path: Path) -> None:
    assert kills(old, tmp_path, 5, seed=1) >= 1


@pytest.mark.soak
def test_a_hundred_kills_during_a_migration(old: Path, tmp_path: Path) -> None:
    half_way = kills(old, tmp_path, 100, seed=2)
    print(f"100 kills, {half_way} of them within the migration; every lake opened")  # noqa: T201
    assert half_way >= 20
