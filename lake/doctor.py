"""What is wrong with a lake, and the way out of each: a check-up that changes nothing unless it is told to repair.

It asks of every table whether it opens, whether its files are whole, whether its keys are unique and under the indexes,
and of the rows whether they go together: answers with images, images with thumbnails, bytes with their hash. What is
missing for a reason that the lake itself tells (a share of the traffic is kept, a policy let go, an image could not be
read, was erased) is no finding.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lake import backup, erasure, ids, maintenance, opening, quarantine, retention, schema, store, table_files
from lake.errors import LakeloopError, NotALake

if TYPE_CHECKING:
    from lake.spool import Spool
    from lake.store import Lake

Severity = Literal["wrong", "note"]
# Images whose bytes are read and hashed unless all are.
SAMPLE = 200
READ_AT_ONCE = 200
FREE_BYTES = 2 << 30
AHEAD = dt.timedelta(minutes=5)
WAITS_SECONDS = 300.0


@dataclass(frozen=True)
class Finding:
    """Something found. `wrong` needs doing something about, as `remedy` says; a `note` is good to know."""

    check: str
    severity: Severity
    what: str
    remedy: str = ""


@dataclass
class Report:
    """`checked`: how much each check looked at. `mended`: what was repaired, or put aside on opening."""

    findings: list[Finding] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    mended: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        return not any(f.severity == "wrong" for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound}


def examine(
    uri: str,
    *,
    spools: Sequence[Spool] = (),
    repair: bool = False,
    full: bool = False,
    storage_options: dict[str, str] | None = None,
) -> Report:
    """Examines the lake at `uri`. `full` reads and hashes every image, else a sample of them.

    `repair` puts torn commits of the last moments aside, completes indexes, removes leftovers and repeated rows of
    one key, and erases again what was erased and came back. Raises NotALake when there is no lake.
    """
    started = time.monotonic()
    report = Report()
    folder = store.local_folder(uri)
    if repair:
        report.mended += quarantine.quarantine(uri, files=True)
    try:
        lake = opening.open(uri, storage_options=storage_options)
    except NotALake:
        raise
    except LakeloopError as error:
        report.findings.append(
            Finding("opens", "wrong", str(error), "restore the lake from a backup: lakeloop restore")
        )
        return report
    report.mended += lake.notices
    for check in (_files, _leftovers, _indexes, _keys, _answers, _thumbnails, _sets, _erased, _clock):
        for finding in check(lake, report, repair):
            report.findings.append(finding)
    report.findings += _bytes(lake, report, full)
    if folder is not None:
        report.findings += _disk(folder)
    for spool in spools:
        report.findings += _spool(spool)
    report.seconds = time.monotonic() - started
    return report


def _files(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    if lake.folder is None:
        return
    for name in schema.TABLES:
        table = lake.folder / f"{name}.lance"
        dataset = lake.dataset(name)
        report.checked["fragments"] = report.checked.get("fragments", 0) + len(dataset.get_fragments())
        torn = list(table_files.torn(dataset, table))
        if torn:
            what = f"{name}: {len(torn)} files are missing or cut short, the first is {torn[0]}"
            remedy = "if the machine lost power a moment ago: lakeloop doctor --repair; otherwise: lakeloop restore"
            yield Finding("files", "wrong", what, remedy)


def _leftovers(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    if lake.folder is None:
        return
    for name in schema.TABLES:
        dataset = lake.dataset(name)
        limit = store.now() - maintenance.LEFTOVER_AFTER
        old = [f for f in table_files.unclaimed(dataset) if f.modified < limit]
        if old and repair:
            with maintenance.leader(lake):
                maintenance.remove_leftovers(lake, name)
            report.mended.append(f"{name}: removed {len(old)} files that killed writers left")
        elif old:
            size = sum(f.size for f in old)
            what = f"{name}: {len(old)} files ({size:,} bytes) that killed writers left"
            yield Finding("leftovers", "note", what, "lakeloop maintain")
        many = len(dataset.version_refs())
        if many > 10_000:
            yield Finding("leftovers", "note", f"{name}: {many:,} versions are kept", "lakeloop maintain")
    parts = [p.name for p in lake.folder.iterdir() if p.name.endswith(".part")]
    if parts:
        yield Finding(
            "leftovers", "note", f"{parts[0]}: left by an interrupted run", f"remove {lake.folder / parts[0]}"
        )
    aside = lake.folder / quarantine.FOLDER
    if aside.exists():
        what = f"{sum(1 for p in aside.rglob('*') if p.is_file())} damaged versions were put aside in {aside}"
        yield Finding("leftovers", "note", what, "remove the folder once nothing is missed")


def _indexes(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    for name, table in schema.TABLES.items():
        dataset = lake.dataset(name)
        present = {column for index in dataset.describe_indices() for column in index.field_names}
        absent = sorted(set(table.indexed) - present)
        if absent and repair:
            lake.create_table(table)
            report.mended.append(f"{name}: made the index on {', '.join(absent)}")
        elif absent:
            what = f"{name} has no index on {', '.join(absent)}: look-ups read the whole table"
            yield Finding("indexes", "wrong", what, "lakeloop doctor --repair")
        rows = dataset.count_rows()
        outside = max((maintenance.unindexed(dataset, i.name) for i in dataset.describe_indices()), default=0)
        report.checked["rows"] = report.checked.get("rows", 0) + rows
        if outside > max(100_000, rows // 4):
            if repair:
                maintenance.complete_indexes(lake, name)
                report.mended.append(f"{name}: completed the indexes")
            else:
                what = f"{name}: {outside:,} of {rows:,} rows are in no index"
                yield Finding("indexes", "note", what, "lakeloop maintain")


def _keys(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    for name, table in schema.TABLES.items():
        if not table.key:
            continue
        query = f'SELECT "{table.key}" AS k, count(*) AS n FROM {name} GROUP BY 1 HAVING n > 1 ORDER BY 1'
        twice = lake.sql(query)
        if not twice.num_rows:
            continue
        if repair:
            repeats = _repeats(lake, name, table.key, twice["k"].to_pylist())
            if repeats:
                lake.delete(name, f"_rowid in ({','.join(map(str, repeats))})")
                report.mended.append(f"{name}: removed {len(repeats)} rows that repeat others")
                continue
        what = f"{name}: {twice.num_rows:,} keys have more than one row, the first is {twice['k'][0].as_py()}"
        yield Finding("keys", "wrong", what, "lakeloop doctor --repair removes those that only repeat another")


def _repeats(lake: Lake, name: str, key: str, keys: list[Any]) -> list[int]:
    """Row ids of what says the same as an earlier row of its key; none when any two of a key differ in more."""
    columns = [f.name for f in lake.dataset(name).schema if f.name != "data" and f.name != "ingested_at"]
    texts = store.literals([str(k) for k in keys]) if isinstance(keys[0], str) else ",".join(map(str, keys))
    found = lake.dataset(name).scanner(columns=columns, filter=f"{key} in ({texts})", with_row_id=True).to_table()
    seen: dict[Any, dict[str, Any]] = {}
    repeats = []
    for row in found.to_pylist():
        number = row.pop("_rowid")
        if row[key] not in seen:
            seen[row[key]] = row
        elif seen[row[key]] == row:
            repeats.append(number)
        else:
            return []
    return repeats


def _answers(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    """Every answer's image is there, or the lake says why not."""
    gone = retention.let_go_before(lake).get("images")
    missing = lake.sql(
        "SELECT count(*) AS n, min(prediction_id) AS first FROM predictions p WHERE image_status IS NULL"
        " AND image_share IS NULL AND (ingested_at >= $1 OR $1 IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM images i WHERE i.image_id = p.image_id)",
        [gone],
    ).to_pylist()[0]
    if missing["n"]:
        what = f"{missing['n']:,} answers are about images that are not there, the first is {missing['first']}"
        yield Finding("answers", "wrong", what, "ingest the images again, or: lakeloop restore")
    for name in ("labels", "reviews"):
        orphans = lake.sql(
            f"SELECT count(DISTINCT image_id) AS n FROM {name} l"
            " WHERE NOT EXISTS (SELECT 1 FROM predictions p WHERE p.image_id = l.image_id)"
        )["n"][0].as_py()
        if orphans:
            yield Finding("answers", "note", f"{name}: {orphans:,} images have no row in predictions")


def _thumbnails(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    gone = retention.let_go_before(lake).get("thumbnails")
    missing = lake.sql(
        "SELECT count(*) AS n, min(image_id) AS first FROM images i WHERE (ingested_at >= $1 OR $1 IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM thumbnails t WHERE t.image_id = i.image_id)"
        " AND NOT EXISTS (SELECT 1 FROM predictions p WHERE p.image_id = i.image_id AND image_status IS NOT NULL)",
        [gone],
    ).to_pylist()[0]
    if missing["n"]:
        what = f"{missing['n']:,} images have no thumbnail, the first is {missing['first']}"
        yield Finding("thumbnails", "wrong", what, "lakeloop restore, or forget those images and ingest them again")


def _sets(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    """A slice or node has as many members as it says."""
    for table, members in (("slices", "slice_members"), ("clusters", "cluster_members")):
        wrong = lake.sql(
            f"SELECT s.id, s.size, count(m.image_id) AS n FROM {table} s LEFT JOIN {members} m ON m.id = s.id"
            " GROUP BY ALL HAVING n <> s.size ORDER BY 1"
        ).to_pylist()
        if wrong:
            first = wrong[0]
            what = f"{table}: {first['id']} says {first['size']:,} images and has {first['n']:,} ({len(wrong)} such)"
            yield Finding("sets", "wrong", what, "make the slice or tree again")


def _erased(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    """Nothing that was erased is there, but for the bare answers that came about it later."""
    tombstones = lake.scan("forgotten", ["image_id"])["image_id"].to_pylist()
    back = (
        {i for name in ("images", "thumbnails") for i in lake.known(name, "image_id", tombstones)}
        if tombstones
        else set()
    )
    if back and repair:
        erasure.forget(lake, sorted(back), reason="came back after its erasure")
        report.mended.append(f"erased {len(back)} images again")
    elif back:
        what = f"{len(back)} erased images are there again, the first is {min(back)}"
        yield Finding("erased", "wrong", what, "lakeloop doctor --repair, or lakeloop forget")


def _clock(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    for name in ("images", "predictions", "reviews"):
        newest = lake.sql(f"SELECT max(ingested_at) AS t FROM {name}")["t"][0].as_py()
        if newest is not None and newest > store.now() + AHEAD:
            what = (
                f"{name}: rows came in the future ({newest:%Y-%m-%d %H:%M} UTC): this clock is late or theirs was early"
            )
            yield Finding("clock", "wrong", what, "set the clock; policies go by these times")


def _bytes(lake: Lake, report: Report, full: bool) -> Iterator[Finding]:
    """Images' bytes hash to their ids."""
    dataset = lake.dataset("images")
    total = dataset.count_rows()
    chosen = (
        dataset.scanner(columns=["image_id"]).to_table() if full else dataset.sample(min(SAMPLE, total), ["image_id"])
    )
    names = chosen["image_id"].to_pylist() if total else []
    wrong: list[str] = []
    for start in range(0, len(names), READ_AT_ONCE):
        part = names[start : start + READ_AT_ONCE]
        try:
            found = {i.image_id: ids.image_id(i.data) for i in lake.images(part)}
        except (OSError, ValueError) as error:
            yield Finding("bytes", "wrong", f"images cannot be read: {str(error)[:200]}", "lakeloop restore")
            return
        wrong += [i for i in part if found.get(i) != i]
    report.checked["images_hashed"] = len(names)
    if wrong:
        what = f"the bytes of {len(wrong):,} images are not what was stored, the first is {wrong[0]}"
        yield Finding("bytes", "wrong", what, "lakeloop restore, or forget those images and ingest them again")


def _disk(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        remedy = "make room, or let go of old images: lakeloop retain"
        yield Finding("disk", "wrong", f"the disk of {folder} has {free >> 20:,} MB left", remedy)
    lost = [b["path"] for b in _backups(folder) if not Path(b["path"]).exists()]
    if lost:
        yield Finding("disk", "note", f"{len(lost)} backups are not where they were made, the first is {lost[0]}")


def _backups(folder: Path) -> list[dict[str, Any]]:
    path = folder / backup.RECORD
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    return found


def _spool(spool: Spool) -> Iterator[Finding]:
    depth = spool.depth()
    lost = spool.lost()
    if lost:
        what = f"{spool.folder}: the bytes of {len(lost)} waiting events are gone or damaged, the first is {lost[0]}"
        yield Finding("spool", "wrong", what, "send those images again; the answers themselves are safe")
    if depth.parked:
        what = f"{spool.folder}: {depth.parked} events could not be drained"
        yield Finding("spool", "wrong", what, "upgrade lakeloop; they stay in the spool until then")
    if depth.age() > WAITS_SECONDS:
        what = f"{spool.folder}: {depth.events:,} events wait, the oldest for {depth.age():,.0f} s"
        yield Finding("spool", "note", what, "any lakeloop command on the lake drains a spool nobody serves")
    if spool.free_bytes() < FREE_BYTES:
        what = f"the disk of {spool.folder} has {spool.free_bytes() >> 20:,} MB left"
        yield Finding("spool", "wrong", what, "make room: events are refused when it is full")
