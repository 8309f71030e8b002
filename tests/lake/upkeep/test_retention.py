"""Retention drops old images and frees the disk; protected images stay, and predictions stay for good."""

import datetime as dt
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import lake
from lake import slices
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.storage import leader_lock, schema, store
from lake.storage.lance_files import merging
from lake.upkeep import doctor, maintenance, retention
from lake.upkeep.retention import RetentionPolicy
from tests.conftest import MakeLake
from tests.lake import prediction_rows, stock

NOW = dt.timedelta(0)
SIZE = 20_000


def ago(days: float) -> dt.datetime:
    return store.now() - dt.timedelta(days=days)


@pytest.fixture(scope="module")
def _aged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lk = lake.create(str(tmp_path_factory.mktemp("aged") / "lake"), embedders=["x"])
    stock.bind(lk)
    for turn in range(5):
        stock.add(lk, range(5 * turn, 5 * turn + 5), size=SIZE, at=ago(40 - 10 * turn))
    stock.embed(lk, range(25), SIZE)
    return Path(lk.uri)


@pytest.fixture
def aged(_aged: Path, tmp_path: Path) -> OpenLake:
    """Five images a commit, 40, 30, 20, 10 and 0 days ago: numbers 0 to 24, all embedded."""
    return lake.open(str(shutil.copytree(_aged, tmp_path / "aged")))


def stored(lk: OpenLake, table: str = "images") -> set[int]:
    names = set(lk.scan(table, ["image_id"])["image_id"].to_pylist())
    return {n for n in range(25) if stock.image_id(n, SIZE) in names}


def test_old_images_are_dropped_and_their_predictions_stay(aged: OpenLake) -> None:
    report = retention.retain(aged, RetentionPolicy(image_days=25))
    assert (report.images.items, report.images.bytes, report.images.held) == (10, 10 * SIZE, 0)
    assert stored(aged) == set(range(10, 25))
    assert stored(aged, "thumbnails") == set(range(25))
    assert aged.dataset("samples").count_rows() == 25
    assert aged.dataset("samples").count_rows("emb_x is not null") == 25
    assert len(list(aged.images([stock.image_id(n, SIZE) for n in range(25)]))) == 15


def test_the_disk_has_more_room_and_other_files_are_as_they_were(aged: OpenLake) -> None:
    table = Path(aged.table_uri("images"))
    maintenance.remove_versions(aged, "images", NOW)
    before, size = stock.files(table / "data"), stock.size(table)
    retention.retain(aged, RetentionPolicy(image_days=25), older_than=NOW)
    after = stock.files(table / "data")
    assert len(before) == 5
    assert len(after) == 3
    assert after == {name: before[name] for name in after}
    assert size - stock.size(table) > 10 * SIZE


def test_a_file_is_written_anew_once_more_than_half_of_it_is_dead(make_lake: MakeLake) -> None:
    lk = make_lake()
    numbers = range(10)
    for half, days in ((numbers[:6], 40), (numbers[6:], 10)):
        stock.add(lk, half, size=SIZE, at=ago(days))
    merging.rewrite(lk, "images", [f.fragment_id for f in lk.dataset("images").get_fragments()])
    assert [f.num_deletions for f in lk.dataset("images").get_fragments()] == [0]
    retention.retain(lk, RetentionPolicy(image_days=41), older_than=NOW)
    size = stock.size(Path(lk.table_uri("images")))
    retention.retain(lk, RetentionPolicy(image_days=25), older_than=NOW)
    assert stored(lk) == set(numbers[6:])
    assert [f.num_deletions for f in lk.dataset("images").get_fragments()] == [0]
    assert size - stock.size(Path(lk.table_uri("images"))) > 5 * SIZE


def test_images_with_a_label_a_slice_or_a_review_stay(aged: OpenLake) -> None:
    protected = [stock.image_id(n, SIZE) for n in range(4)]
    prediction_rows.label(aged, (protected[0], "cat", store.now()))
    slices.create(aged, "odd", ids=[protected[1]])
    review: dict[str, Any] = {
        "event_id": str(uuid.uuid4()),
        "prediction_id": stock.prediction_id(2),
        "image_id": protected[2],
    }
    review |= {"timestamp": ago(39), "ingested_at": ago(39), "origin": "customer", "verdict": "incorrect"}
    aged.insert("reviews", pa.Table.from_pylist([review], schema=schema.REVIEWS.arrow()))
    policy = RetentionPolicy(image_days=5, thumbnail_days=15, vector_days=15)
    report = retention.retain(aged, policy, older_than=NOW)
    assert stored(aged) == {0, 1, 2, *range(20, 25)}
    assert stored(aged, "thumbnails") == {0, 1, 2, *range(15, 25)}
    assert (report.images.held, report.thumbnails.held, report.vectors.held) == (3, 3, 3)
    left = aged.sql("SELECT image_id FROM samples WHERE emb_x IS NOT NULL")["image_id"].to_pylist()
    assert {n for n in range(25) if stock.image_id(n, SIZE) in left} == {0, 1, 2, *range(15, 25)}
    assert aged.dataset("samples").count_rows() == 25


def test_the_age_of_an_image_is_that_of_its_newest_prediction(aged: OpenLake) -> None:
    prediction_rows.add(aged, [{"image_id": stock.image_id(3, SIZE), "prediction_id": str(uuid.uuid4())}])
    policy = RetentionPolicy(image_days=5, thumbnail_days=15, vector_days=15)
    retention.retain(aged, policy)
    assert stored(aged) == {3, *range(20, 25)}
    assert stored(aged, "thumbnails") == {3, *range(15, 25)}
    condition = f"image_id = '{stock.image_id(3, SIZE)}' and emb_x is not null"
    assert aged.dataset("samples").count_rows(condition) == 1


def test_vectors_are_off_the_disk_and_not_made_again(aged: OpenLake) -> None:
    from lake.storage.missing_vectors import MissingVectors

    needle = stock.vector(2).tobytes()[:64]

    def on_disk() -> bool:
        return any(needle in p.read_bytes() for p in Path(aged.uri).rglob("*") if p.is_file())

    assert on_disk()
    report = retention.retain(aged, RetentionPolicy(image_days=15, vector_days=15), older_than=NOW)
    assert (report.vectors.items, report.vectors.bytes) == (15, 15 * stock.DIM * 4)
    assert not on_disk()
    assert MissingVectors(aged, "emb_x").look().counts() == {"waiting": 0, "unreadable": 0, "without_bytes": 15}
    again = retention.retain(aged, RetentionPolicy(image_days=15, vector_days=15), older_than=NOW)
    assert (again.images.items, again.vectors.items) == (0, 0)


def test_above_the_byte_limit_the_oldest_images_are_dropped(aged: OpenLake) -> None:
    report = retention.retain(aged, RetentionPolicy(image_gb=12.5 * SIZE / 1e9))
    assert stored(aged) == set(range(13, 25))
    assert report.over_gb == 0
    assert retention.retain(aged, RetentionPolicy(image_gb=12.5 * SIZE / 1e9)).images.items == 0


def test_the_next_oldest_images_are_dropped_instead_of_protected_ones(aged: OpenLake) -> None:
    slices.create(aged, "some", ids=[stock.image_id(n, SIZE) for n in (0, 1)])
    retention.retain(aged, RetentionPolicy(image_gb=22 * SIZE / 1e9))
    assert stored(aged) == {0, 1, *range(5, 25)}


def test_protected_images_may_exceed_what_the_policy_allows(aged: OpenLake) -> None:
    slices.create(aged, "all", ids=[stock.image_id(n, SIZE) for n in range(10)])
    report = retention.retain(aged, RetentionPolicy(image_gb=5 * SIZE / 1e9))
    assert stored(aged) == set(range(10))
    assert report.over_gb == pytest.approx(5 * SIZE / 1e9)


def test_an_image_that_two_limits_hold_is_counted_once(aged: OpenLake) -> None:
    slices.create(aged, "all", ids=[stock.image_id(n, SIZE) for n in range(10)])
    policy = RetentionPolicy(image_days=5, image_gb=5 * SIZE / 1e9)
    assert retention.retain(aged, policy, dry_run=True).images.held == 10
    assert retention.retain(aged, policy).images.held == 10


def test_what_is_free_on_the_disk_is_measured(aged: OpenLake) -> None:
    def size() -> int:
        tables = [Path(aged.uri) / f"{name}.lance" for name in retention.TABLES]
        return sum(p.stat().st_size for table in tables for p in table.rglob("*") if p.is_file())

    before = size()
    kept = retention.retain(aged, RetentionPolicy(image_days=25))
    assert (kept.images.bytes, kept.freed_bytes) == (10 * SIZE, max(0, before - size()))
    assert (kept.freed_bytes or 0) < 10 * SIZE, "older versions name the files"
    before = size()
    freed = retention.retain(aged, RetentionPolicy(image_days=25), older_than=NOW)
    assert (freed.images.bytes, freed.freed_bytes) == (0, before - size())
    assert (freed.freed_bytes or 0) > 9 * SIZE
    assert retention.retain(aged, RetentionPolicy(image_days=25), dry_run=True).freed_bytes is None


def test_a_dry_run_reports_the_same_and_changes_nothing(aged: OpenLake) -> None:
    policy = RetentionPolicy(image_days=25, image_gb=6 * SIZE / 1e9, thumbnail_days=35, vector_days=35)
    lying = stock.files(Path(aged.uri))
    dry = retention.retain(aged, policy, dry_run=True)
    lying.pop(leader_lock.LOCK, None)
    after = stock.files(Path(aged.uri))
    after.pop(leader_lock.LOCK, None)
    assert after == lying
    real = retention.retain(aged, policy)
    kinds = ("images", "thumbnails", "vectors")
    assert [(getattr(dry, k).items, getattr(dry, k).bytes) for k in kinds] == [
        (getattr(real, k).items, getattr(real, k).bytes) for k in kinds
    ]
    assert (real.images.items, real.thumbnails.items, real.vectors.items) == (19, 5, 5)


def test_the_lake_records_which_images_it_dropped(aged: OpenLake) -> None:
    """So the doctor knows retired from lost."""
    retention.retain(aged, RetentionPolicy(image_days=25, thumbnail_days=35))
    assert doctor.examine(aged.uri, deep=True).findings == []
    gone = retention.dropped_before(aged)
    assert abs(gone["images"] - ago(25)) < dt.timedelta(minutes=1)
    aged.delete("images", f"image_id = '{stock.image_id(20, SIZE)}'")
    assert [f.check for f in doctor.examine(aged.uri).findings] == ["predictions"]


def test_dropped_images_may_be_ingested_again(aged: OpenLake) -> None:
    retention.retain(aged, RetentionPolicy(image_days=25))
    stock.add(aged, [0], size=SIZE)
    assert 0 in stored(aged)
    assert retention.retain(aged, RetentionPolicy(image_days=25)).images.items == 0


# The policy ------------------------------------------------------------------------------------------------


def test_a_policy_is_toml_or_json(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(
        "[images]\ndays = 90\nmax_gb = 500\n[thumbnails]\ndays = 365\n[vectors]\ndays = 365\n"
    )
    (tmp_path / "p.json").write_text(json.dumps({"images": {"days": 90, "max_gb": 500}, "thumbnails": {"days": 365}}))
    assert retention.read_policy(tmp_path / "p.toml") == RetentionPolicy(90, 500, 365, 365)
    assert retention.read_policy(tmp_path / "p.json") == RetentionPolicy(90, 500, 365, None)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({}, "is empty"),
        ([], "must be an object"),
        ({"image": {"days": 1}}, "no section 'image'; it takes images, thumbnails, vectors"),
        ({"images": 30}, "images is 30, not a section with days, max_gb"),
        ({"images": {"day": 30}}, "images has no key 'day'; it takes days, max_gb"),
        ({"thumbnails": {"max_gb": 30}}, "thumbnails has no key 'max_gb'; it takes days"),
        ({"images": {"days": -1}}, "images.days is -1; it must be a number above 0"),
        ({"images": {"days": 0}}, "images.days is 0; it must be a number above 0"),
        ({"images": {"days": True}}, "images.days is True"),
        ({"images": {"days": "30"}}, "images.days is '30'"),
        ({"images": {"days": float("nan")}}, "images.days is nan"),
        ({"images": {"max_gb": float("inf")}}, "images.max_gb is inf"),
        (
            {"images": {"days": 30}, "vectors": {"days": 10}},
            r"vectors.days is 10; it must be at least images.days \(30\)",
        ),
        ({"images": {"days": 30}, "thumbnails": {"days": 10}}, "thumbnails.days is 10; it must be at least"),
        ({"vectors": {"days": 10}}, "vectors.days needs images.days"),
    ],
)
def test_an_invalid_policy_is_refused_with_the_reason(policy: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        retention.check_policy(policy)


@pytest.mark.parametrize(("name", "text"), [("p.toml", "images = ["), ("p.json", "{"), ("p.toml", "\xff")])
def test_a_file_that_is_not_a_policy_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=r"is not valid (TOML|JSON)"):
        retention.read_policy(tmp_path / name)
    with pytest.raises(BadInput, match="cannot read"):
        retention.read_policy(tmp_path / "nothing.toml")


def test_drainers_pause_while_it_is_decided_what_nobody_asks_about(aged: OpenLake, tmp_path: Path, monkeypatch) -> None:
    from lake.errors import LakeBusy
    from lake.spool.spool import Spool

    monkeypatch.setattr(retention, "DRAINER_SECONDS", 0.1)
    spool = Spool(tmp_path / "spool")
    with spool.drainer() as mine:
        assert mine
        with pytest.raises(LakeBusy, match="being drained"):
            retention.retain(lake.open(aged.uri), RetentionPolicy(image_days=25), spools=[spool])
    assert retention.retain(aged, RetentionPolicy(image_days=25), spools=[spool]).images.items == 10
    spool.close()
