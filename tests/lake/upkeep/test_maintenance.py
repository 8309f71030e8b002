"""Maintenance changes how a lake lies on the disk, and nothing that anybody reads."""

import datetime as dt
import os
import shutil
import threading
import time
from pathlib import Path

import lance
import pytest

import lake
from lake.errors import LakeBusy
from lake.open_lake import OpenLake
from lake.storage import leader_lock, schema
from lake.storage.lance_files import merging, table_files
from lake.storage.lance_files.merging import Fragment, FragmentSize
from lake.upkeep import maintenance
from tests.conftest import MakeLake
from tests.lake import stock

pytestmark = pytest.mark.slow

NOW = dt.timedelta(0)


@pytest.fixture(scope="module")
def _tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lk = lake.create(str(tmp_path_factory.mktemp("tiny") / "lake"), embedders=["x"])
    stock.bind(lk)
    number = 0
    for batch in range(40):
        stock.add(lk, range(number, number + 1 + batch % 3))
        number += 1 + batch % 3
    stock.embed(lk, range(number // 2))
    return Path(lk.uri)


@pytest.fixture
def tiny(_tiny: Path, tmp_path: Path) -> OpenLake:
    """Forty commits of one to three rows a table; the first half has vectors."""
    return lake.open(str(shutil.copytree(_tiny, tmp_path / "tiny")))


def test_every_row_is_what_it_was(tiny: OpenLake) -> None:
    before = stock.contents(tiny)
    report = maintenance.maintain(tiny, older_than=NOW)
    assert stock.contents(tiny) == stock.contents(lake.open(tiny.uri)) == before
    for name in ("images", "thumbnails", "samples"):
        table = report.tables[name]
        assert (table.fragments_before, table.versions_removed > 40) == (40, True)
        assert table.fragments_after <= 2
        assert table.bytes_after < table.bytes_before
        assert len(tiny.dataset(name).version_refs()) == 1
    assert report.complete
    assert report.tagged == []


def test_searches_and_sql_return_the_same_rows(tiny: OpenLake) -> None:
    from embeddings.search.search import search

    def answers() -> object:
        rows = search(tiny, ids=[stock.image_id(3)], k=7, embedder="x").to_pylist()
        counted = tiny.sql("SELECT label, count(*), max(confidence) FROM predictions GROUP BY 1 ORDER BY 1").to_pylist()
        return [(f["image_id"], round(f["similarity"], 5)) for f in rows], counted

    before = answers()
    maintenance.maintain(tiny, older_than=NOW)
    assert answers() == before


def test_every_row_is_under_the_indexes(tiny: OpenLake) -> None:
    maintenance.maintain(tiny)
    for name, table in schema.TABLES.items():
        dataset = tiny.dataset(name)
        for index in dataset.describe_indices():
            assert dataset.stats.index_stats(index.name).get("num_unindexed_rows") in (0, None), name
        assert len(dataset.describe_indices()) == len(table.indexed)


def test_a_second_time_there_is_nothing_to_do(tiny: OpenLake) -> None:
    maintenance.maintain(tiny, older_than=NOW)
    lying = stock.files(Path(tiny.uri))
    again = maintenance.maintain(tiny, older_than=NOW)
    lying.pop(leader_lock.LOCK)
    assert again.total("versions_removed") == again.total("leftovers_removed") == 0
    assert {name: state for name, state in stock.files(Path(tiny.uri)).items() if name != leader_lock.LOCK} == lying
    assert not maintenance.due(tiny)


def test_rows_written_during_maintenance_are_not_lost(make_lake: MakeLake) -> None:
    """Images and predictions arrive and get their vectors while fragments are merged and versions removed."""
    lk = make_lake(embedders=["x"])
    stock.bind(lk)
    writer, over = lake.open(lk.uri), threading.Event()
    written: list[str] = []

    def write() -> None:
        number = 0
        while not over.is_set():
            written.extend(stock.add(writer, [number, number + 1]))
            stock.embed(writer, [number, number + 1])
            number += 2

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(6):
            maintenance.maintain(lk, older_than=NOW)
    finally:
        over.set()
        thread.join()
    for name in ("images", "thumbnails", "samples"):
        assert sorted(lk.scan(name, ["image_id"])["image_id"].to_pylist()) == sorted(written)
    assert len(list(lk.images(written))) == len(written) > 4
    vectors = {r["image_id"]: r["emb_x"] for r in lk.scan("samples", ["image_id", "emb_x"]).to_pylist()}
    for number, image in enumerate(written):
        assert vectors[image] == stock.vector(number).tolist()


def test_one_process_maintains_at_a_time(lk: OpenLake) -> None:
    with leader_lock.leader(lk), pytest.raises(LakeBusy, match="by another process"):
        maintenance.maintain(lake.open(lk.uri))
    maintenance.maintain(lk)


def test_a_step_ends_when_its_time_is_up(tiny: OpenLake) -> None:
    assert not maintenance.maintain(tiny, seconds=0).complete
    assert not maintenance.maintain(tiny, stop=lambda: True).complete
    assert maintenance.due(tiny)


def test_tagged_versions_stay_and_are_named(tiny: OpenLake) -> None:
    version = tiny.version("samples")
    rows = tiny.dataset("samples").count_rows()
    tiny.dataset("samples").tags.create("training", version)
    stock.add(tiny, [900])
    report = maintenance.maintain(tiny, older_than=NOW)
    assert report.tagged == ["samples@training"]
    assert lance.dataset(tiny.table_uri("samples"), version="training").count_rows() == rows


def test_of_old_versions_the_last_of_each_hour_stays(lk: OpenLake) -> None:
    for number in range(12):
        stock.add(lk, [number])
    listed = table_files.manifests(Path(lk.table_uri("images")))
    now = time.time() // 3600 * 3600
    for index, (_, path) in enumerate(listed[2:]):  # three a hour, from three hours ago; the two newest are fresh
        os.utime(path, (now - 3600 * (3 + index // 3),) * 2)
    expected = [version for version, _ in (*listed[:2], *listed[2::3])]
    lk.dataset("images").tags.create("kept", listed[3][0])
    removed = maintenance.remove_versions(lk, "images", dt.timedelta(days=2))
    left = [version for version, _ in table_files.manifests(Path(lk.table_uri("images")))]
    assert left == sorted([*expected, listed[3][0]], reverse=True)
    assert removed == len(listed) - len(left)
    assert [len(lk.dataset("images", v).to_table(columns=["image_id"])) for v in left[-2:]] != []


def test_what_a_killed_writer_left_goes_after_a_day(lk: OpenLake) -> None:
    stock.add(lk, range(3), size=100_000)
    table = Path(lk.table_uri("images"))
    blobs = next(p for p in (table / "data").iterdir() if p.is_dir())
    left = [table / "data/.tmpAAAA", blobs / ".tmpBBBB", table / "data/0101/10.blob", table / "_versions/.tmpCCCC"]
    left[2].parent.mkdir()
    for path in left:
        path.write_bytes(b"x")
    (table / "data/.tmpfresh").write_bytes(b"x")
    for path in left:
        os.utime(path, (time.time() - 90_000,) * 2)
    assert maintenance.maintain(lk).tables["images"].leftovers_removed == 4
    assert not any(p.exists() for p in [*left, left[2].parent])
    assert (table / "data/.tmpfresh").exists()
    assert len(list(lk.images([stock.image_id(n, 100_000) for n in range(3)]))) == 3


@pytest.mark.parametrize(
    ("rows", "thorough", "passing"),
    [
        ([1] * 40, [list(range(40))], [list(range(40))]),
        ([8_000, 8_000, 8_000], [], []),  # full enough: their bytes are not copied again
        ([300] * 27, [list(range(27))], [list(range(27))]),
        ([300] * 30, [list(range(27)), [27, 28, 29]], [list(range(27))]),
        ([8_000, 5, 8_000, 6, 7], [[3, 4]], []),
        ([2_000] + [1] * 15, [list(range(16))], []),
        ([2_000] + [1] * 16, [list(range(17))], [list(range(1, 17))]),
        ([100] * 16 + [2] * 16, [list(range(32))], [list(range(32))]),
        ([], [], []),
    ],
)  # fmt: skip
def test_images_are_merged_up_to_8192_rows_like_with_like(rows: list, thorough: list, passing: list) -> None:
    fragments = [Fragment(i, FragmentSize(n, n * 1_000), 0.0) for i, n in enumerate(rows)]
    assert list(merging.plan("images", fragments, 2)) == thorough
    assert list(merging.plan("images", fragments, merging.FAN_IN)) == passing


def test_images_are_merged_up_to_256_megabytes() -> None:
    fragments = [Fragment(i, FragmentSize(100, 60 << 20), 0.0) for i in range(6)]
    assert list(merging.plan("images", fragments, 2)) == [[0, 1, 2, 3], [4, 5]]


def test_a_fragment_most_of_whose_images_are_gone_is_written_anew() -> None:
    dead = [Fragment(i, FragmentSize(5_000, 0), share) for i, share in enumerate([0.0, 0.49, 0.51, 0.9])]
    assert list(merging.plan("images", dead, 2)) == [[2], [3]]
    assert list(merging.plan("images", [Fragment(0, FragmentSize(10, 0), 0.6)], 16)) == [[0]]


def test_images_of_different_weeks_do_not_come_together() -> None:
    days = [dt.datetime(2026, 1, day, tzinfo=dt.UTC) for day in (1, 1, 2, 9, 1, 9)]
    fragments = [Fragment(i, FragmentSize(10, 10), 0.0, span=(day, day)) for i, day in enumerate(days)]
    assert list(merging.plan("images", fragments, 2)) == [[0, 1, 2]]


def test_rows_that_wait_for_vectors_are_kept_apart(tiny: OpenLake) -> None:
    """Filling them in rewrites their fragment's whole column: it should not be the one that is done."""
    column = tiny.embedders()[0].column
    maintenance.maintain(tiny)
    lacking = [f.count_rows(f"{column} is null") for f in tiny.dataset("samples").get_fragments()]
    assert sorted(n > 0 for n in lacking) == [False, True]


def test_a_passing_step_does_only_what_is_worth_it(tiny: OpenLake) -> None:
    """It merges many of a size, leaves few versions where they are, and looks for leftovers once a day."""
    left = Path(tiny.table_uri("images")) / "data/.tmpAAAA"
    left.write_bytes(b"x")
    os.utime(left, (time.time() - 90_000,) * 2)
    first = maintenance.maintain(tiny, thorough=False, older_than=NOW)
    assert first.tables["images"].fragments_after < first.tables["images"].fragments_before
    assert (first.total("versions_removed"), first.total("leftovers_removed")) == (0, 1)
    left.write_bytes(b"x")
    os.utime(left, (time.time() - 90_000,) * 2)
    assert maintenance.maintain(tiny, thorough=False).total("leftovers_removed") == 0
    (Path(tiny.uri) / leader_lock.LOCK).write_text("2020-01-01T00:00:00+00:00")
    assert maintenance.maintain(tiny, thorough=False).total("leftovers_removed") == 1
    assert maintenance.maintain(tiny, older_than=NOW).total("versions_removed") > 100


@pytest.mark.soak
def test_a_thousand_tiny_commits_in_passing_steps(make_lake: MakeLake) -> None:
    """No byte of an image is rewritten more than a few times, and few fragments are left."""
    lk = make_lake()
    rewritten = 0
    for number in range(1_000):
        stock.add(lk, [number])
        if number % 50 == 49:
            before = {f.fragment_id for f in lk.dataset("images").get_fragments()}
            maintenance.maintain(lk, thorough=False, older_than=NOW)
            fresh = [f for f in lk.dataset("images").get_fragments() if f.fragment_id not in before]
            rewritten += sum(f.count_rows() for f in fresh)
    assert len(lk.dataset("images").get_fragments()) <= 3 * merging.FAN_IN
    assert rewritten <= 4 * 1_000
    assert len(list(lk.images([stock.image_id(n) for n in range(1_000)]))) == 1_000
