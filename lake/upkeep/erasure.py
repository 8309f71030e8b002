"""Erasing images for good: rows, bytes, vectors and thumbnails, on every file of the lake and of its spools.

Order: a tombstone for each image, so that nothing brings it back meanwhile or later; the spools; the rows; then every
fragment that holds deleted rows is written anew, indexes over contents are rebuilt, and every older version is removed.
A run that was killed is completed by the next. What still holds the images afterwards is named: tagged versions,
backups, and files another process may be about to commit. It does not know of query images or of anybody's copies.
"""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake import ids
from lake.access import audit
from lake.errors import BadInput, LakeBusy
from lake.slices import kept_exports
from lake.sql import columnar, connections
from lake.storage import leader_lock, schema, store
from lake.upkeep import backup_list, purge

if TYPE_CHECKING:
    from lake.spool.spool import Spool
    from lake.storage.store import Lake

# A drainer keeps its lock for one batch.
DRAINER_SECONDS = 60.0
# What keeps an erased image's id: the tombstones, and the slices that had it, so that they can say so.
KEEPING_IDS = (schema.FORGOTTEN, schema.SLICE_MEMBERS)
# Every other table with rows about images.
TABLES = [
    table.name
    for table in schema.TABLES.values()
    if table not in KEEPING_IDS and any(c.name == "image_id" for c in table.columns)
]
# Columns that name images as examples of something: table -> lists of image_ids.
LISTS = {"clusters": ("medoids", "borderline", "errors"), "searches": ("examples",)}
# A server seals the file it writes to after 20 seconds.
SEGMENT_SECONDS = 40.0


@dataclass
class Report:
    """What was erased, and what still holds it.

    `rows`: removed, by table. `slices`: those that had an image; its id stays there, as that of an erased image.
    `trees` and `searches`: those that held an image, and do no longer. `tagged`: TABLE@TAG.
    `backups`: made while an image was there. `unfinished`: files of other processes' uncommitted writes, and spool
    files, that may hold one.
    """

    image_ids: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    spool_events: int = 0
    slices: list[str] = field(default_factory=list)
    trees: list[str] = field(default_factory=list)
    searches: list[str] = field(default_factory=list)
    tagged: list[str] = field(default_factory=list)
    backups: list[dict[str, Any]] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether no file of the lake and its spools holds any of it."""
        return not self.tagged and not self.unfinished

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"complete": self.complete}


def select(
    lake: Lake, image_ids: Sequence[str] = (), source: str | None = None, spools: Sequence[Spool] = ()
) -> list[str]:
    """The images these ids name and those one of whose rows has a source like the pattern (`*`, `?`, `[a-z]`).

    Raises BadInput for what is no image_id, or when neither is given.
    """
    if not image_ids and source is None:
        raise BadInput("say what to erase: image ids or a pattern of sources")
    chosen = {i.lower() for i in image_ids}
    wrong = next((i for i in sorted(chosen) if not ids.is_image_id(i)), None)
    if wrong is not None:
        raise BadInput(f"{wrong!r} is no image_id: 64 hex digits")
    if source is not None:
        query = "SELECT image_id FROM {} WHERE source GLOB $1"
        found = connections.query(lake, " UNION ".join(query.format(t) for t in ("images", "predictions")), [source])
        chosen |= set(found["image_id"].to_pylist())
        for spool in spools:
            chosen |= spool.images_from(source)
    return sorted(chosen)


def forget(
    lake: Lake,
    image_ids: Sequence[str] = (),
    *,
    source: str | None = None,
    spools: Sequence[Spool] = (),
    reason: str | None = None,
    alone: bool = False,
    wait: float = 60.0,
) -> Report:
    """Erases the images that `select` finds. They are refused from then on, from wherever they may come.

    `alone` says that no other process writes to the lake: what unfinished writes left is removed at once then,
    instead of after a day. Waits up to `wait` seconds for maintenance or a backup to end.
    Raises BadInput as `select` does, LakeBusy when another process maintains the lake or drains a spool for long.
    """
    started = time.monotonic()
    chosen = select(lake, image_ids, source, spools)
    report = Report(chosen)
    with leader_lock.leader(lake, wait):
        report.backups = backup_list.made_since(lake, _first_seen(lake, chosen))
        traces = purge.traces(lake, chosen)
        _refuse_from_now_on(lake, chosen, reason)
        for spool in spools:
            report.spool_events += _erase_from_spool(spool, chosen, report)
        _shorten_trees(lake, chosen, report)
        _take_from_lists(lake, chosen, report)
        report.slices = sorted(set(lake.look_up("slice_members", ["id"], "image_id", chosen)["id"].to_pylist()))
        for name in TABLES:
            report.rows[name] = _delete(lake, name, chosen)
        for name in TABLES:
            purge.purge(lake, name)
            report.tagged += [f"{name}@{tag}" for tag in purge.tags_holding(lake, name, chosen)]
            report.unfinished += purge.clear_unfinished(lake, name, traces, alone)
        # A bulk ingest that had looked before the tombstones were there may have brought one back.
        if any(_delete(lake, name, chosen) for name in TABLES):
            raise LakeBusy("another process stored some of the images meanwhile; run the same command again")
        for name in LISTS:
            purge.purge(lake, name)
        columnar.forget(lake, chosen)
        kept_exports.forget(lake, chosen)
    lake.sync()
    report.seconds = time.monotonic() - started
    return report


def _first_seen(lake: Lake, chosen: Sequence[str]) -> dt.datetime | None:
    """When the first of the images came; None when none is there."""
    times: list[dt.datetime] = []
    for name in ("images", "predictions"):
        times += lake.look_up(name, ["ingested_at"], "image_id", chosen)["ingested_at"].to_pylist()
    return min(times, default=None)


def _refuse_from_now_on(lake: Lake, chosen: Sequence[str], reason: str | None) -> None:
    row = {"forgotten_at": store.now(), "reason": reason}
    known = lake.known("forgotten", "image_id", chosen)
    fresh = [row | {"image_id": i} for i in chosen if i not in known]
    lake.insert("forgotten", pa.Table.from_pylist(fresh, schema=schema.FORGOTTEN.arrow()))
    target = chosen[0] if len(chosen) == 1 else f"{len(chosen)} images"
    audit.record(lake, "forget", target, detail={"reason": reason, "images": len(chosen), "new": len(fresh)})
    lake.sync()


# Spools ----------------------------------------------------------------------------------------------------


def _erase_from_spool(spool: Spool, chosen: Sequence[str], report: Report) -> int:
    # From here on no drainer carries any of the images: the next batch sees the tombstones.
    with spool.drainer(DRAINER_SECONDS) as mine:
        if not mine:
            raise LakeBusy(f"the spool {spool.folder} is being drained without a pause; try again")
        erased = spool.erase(chosen)
    # Bytes that were drained still lie in the file a server writes to, until it begins another.
    old = set(spool.erase_drained())
    left = old
    deadline = time.monotonic() + SEGMENT_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        left = old & set(spool.erase_drained())
    report.unfinished += [str(spool.segments / name) for name in sorted(left)]
    return erased


# Rows ------------------------------------------------------------------------------------------------------


def _shorten_trees(lake: Lake, chosen: Sequence[str], report: Report) -> None:
    """Nodes say how many images they have, and name their medoids: from here on without the erased.

    Done before the members go, and the same when done twice. A node that would be empty goes as a whole.
    """
    erased = set(chosen)
    held = Counter(lake.look_up("cluster_members", ["id"], "image_id", chosen)["id"].to_pylist())
    rows = lake.look_up("clusters", lake.dataset("clusters").schema.names, "id", sorted(held)).to_pylist()
    for row in rows:
        everyone = f"id = {store.literal(row['id'])}"
        row["size"] = lake.dataset("cluster_members").count_rows(everyone) - held[row["id"]]
        if row["size"] and not set(row["medoids"]) - erased:
            others = lake.scan("cluster_members", ["image_id"], everyone)["image_id"].to_pylist()
            row["medoids"] = [next(i for i in others if i not in erased)]
    report.trees = sorted({row["tree"] for row in rows})
    empty = [row["id"] for row in rows if not row["size"]]
    if empty:
        lake.delete("clusters", f"id in ({store.literals(empty)})")
    rows = [row for row in rows if row["size"]]
    if rows:
        lake.update("clusters", pa.Table.from_pylist(rows, schema=schema.CLUSTERS.arrow()))


def _take_from_lists(lake: Lake, chosen: Sequence[str], report: Report) -> None:
    """No node shows an erased image as one of its kind, and no search begins with one."""
    erased = set(chosen)
    for table, columns in LISTS.items():
        found = lake.scan(table, ["id", *columns]).to_pylist()
        held = [row["id"] for row in found if any(erased & set(row[column] or ()) for column in columns)]
        if not held:
            continue
        rows = lake.look_up(table, lake.dataset(table).schema.names, "id", held).to_pylist()
        for row in rows:
            for column in columns:
                if row[column] is not None:
                    row[column] = [i for i in row[column] if i not in erased]
        lake.update(table, pa.Table.from_pylist(rows, schema=schema.TABLES[table].arrow()))
        if table == "searches":
            report.searches = sorted(held)


def _delete(lake: Lake, name: str, chosen: Sequence[str]) -> int:
    """Removes the rows about these images; returns how many there were."""
    count = 0
    for start in range(0, len(chosen), store.LOOK_UP_VALUES):
        condition = f"image_id in ({store.literals(chosen[start : start + store.LOOK_UP_VALUES])})"
        found = lake.dataset(name).count_rows(condition)
        if found:
            lake.delete(name, condition)
            count += found
    return count
