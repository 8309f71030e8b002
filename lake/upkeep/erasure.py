"""Erases images for good: rows, bytes, vectors and thumbnails, in every file of the lake and of its spools.

The order: a tombstone for each image, so that nothing brings it back; the spools; the rows; then it rewrites every
fragment with deleted rows, rebuilds indexes over contents, and removes every older version. The next run completes a
killed one. The report names what still holds the images: tagged versions, backups, and files that another process may
still commit. It does not know of query images or of copies outside the lake.
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
from lake.upkeep import backup_list, job_traces, purge, set_aside

if TYPE_CHECKING:
    from lake.spool.spool import Spool
    from lake.storage.store import Lake

# A drainer holds its lock for one batch.
DRAINER_SECONDS = 60.0
# Tables that keep the ids of erased images: the tombstones, and the members of slices, so that slices can report them.
KEEPING_IDS = (schema.FORGOTTEN, schema.SLICE_MEMBERS)
# All other tables with rows about images.
TABLES = [
    table.name
    for table in schema.TABLES.values()
    if table not in KEEPING_IDS and any(c.name == "image_id" for c in table.columns)
]
# Columns that name images as examples of something: table -> lists of image_ids.
LISTS = {"clusters": ("medoids", "borderline", "errors"), "searches": ("examples",)}
# A server closes the segment it writes to after 20 seconds.
SEGMENT_SECONDS = 40.0


@dataclass
class ErasureReport:
    """What was erased, and what still holds it.

    `rows`: the removed rows by table. `slices`: the slices that had an image; its id stays there, marked as erased.
    `trees` and `searches`: those that held an image before. `jobs`: their rows and
    logs that named one. `tagged`: tagged versions that hold one, as TABLE@TAG.
    `backups`: those made while an image was in the lake. `unfinished`: files of uncommitted writes, and files of
    spools, that may hold one.
    """

    image_ids: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    spool_events: int = 0
    slices: list[str] = field(default_factory=list)
    trees: list[str] = field(default_factory=list)
    searches: list[str] = field(default_factory=list)
    jobs: int = 0
    tagged: list[str] = field(default_factory=list)
    backups: list[dict[str, Any]] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether no file of the lake and its spools holds any of the images."""
        return not self.tagged and not self.unfinished

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"complete": self.complete}


def select(
    lake: Lake, image_ids: Sequence[str] = (), source: str | None = None, spools: Sequence[Spool] = ()
) -> list[str]:
    """The image ids `image_ids`, and those of images whose source matches the pattern `source` (`*`, `?`, `[a-z]`).

    Raises BadInput for an invalid image id, and if both arguments are missing.
    """
    if not image_ids and source is None:
        raise BadInput("nothing to erase: give image ids or a pattern of sources")
    selected = {i.lower() for i in image_ids}
    wrong = next((i for i in sorted(selected) if not ids.is_image_id(i)), None)
    if wrong is not None:
        raise BadInput(f"{wrong!r} is not an image id; an image id has 64 hexadecimal digits")
    if source is not None:
        query = "SELECT image_id FROM {} WHERE source GLOB $1"
        rows = connections.query(lake, " UNION ".join(query.format(t) for t in ("images", "samples")), [source])
        selected |= set(rows["image_id"].to_pylist())
        for spool in spools:
            selected |= spool.images_from(source)
    return sorted(selected)


def forget(
    lake: Lake,
    image_ids: Sequence[str] = (),
    *,
    source: str | None = None,
    spools: Sequence[Spool] = (),
    reason: str | None = None,
    alone: bool = False,
    wait: float = 60.0,
) -> ErasureReport:
    """Erases the images that `select` returns. From then on the lake refuses them, wherever they come from.

    `alone` says that no other process writes to the lake: then files of unfinished writes are removed at once instead
    of after a day. Waits up to `wait` seconds for maintenance or a backup to end. Raises BadInput as `select` does, and
    LakeBusy if another process keeps maintaining the lake or draining a spool.
    """
    started = time.monotonic()
    report = ErasureReport(select(lake, image_ids, source, spools))
    image_ids = report.image_ids
    with leader_lock.leader(lake, wait):
        report.backups = backup_list.made_since(lake, _first_seen(lake, image_ids))
        traces = purge.traces(lake, image_ids)
        _write_tombstones(lake, image_ids, reason)
        for spool in spools:
            report.spool_events += _erase_from_spool(spool, image_ids, report)
        _shorten_trees(lake, image_ids, report)
        _take_from_lists(lake, image_ids, report)
        report.slices = sorted(set(lake.look_up("slice_members", ["id"], "image_id", image_ids)["id"].to_pylist()))
        for name in TABLES:
            report.rows[name] = _delete(lake, name, image_ids)
        for name in TABLES:
            purge.purge(lake, name)
            report.tagged += [f"{name}@{tag}" for tag in purge.tags_holding(lake, name, image_ids)]
            report.unfinished += purge.clear_unfinished(lake, name, traces, alone)
        # A bulk ingest that read the tombstones too early may have stored an image again.
        if any(_delete(lake, name, image_ids) for name in TABLES):
            raise LakeBusy("another process stored some of these images meanwhile; run the same command again")
        report.jobs = job_traces.erase(lake, image_ids)
        for name in (*LISTS, "jobs"):
            purge.purge(lake, name)
        if lake.folder is not None:  # damaged files may hold an image, and nothing can search them
            set_aside.remove_files(lake.folder)
        columnar.forget(lake, image_ids)
        kept_exports.forget(lake, image_ids)
    lake.sync()
    report.seconds = time.monotonic() - started
    return report


def _first_seen(lake: Lake, image_ids: Sequence[str]) -> dt.datetime | None:
    """The time when the first of the images came; None if the lake has none of them."""
    times: list[dt.datetime] = []
    for name in ("images", "samples"):
        times += lake.look_up(name, ["ingested_at"], "image_id", image_ids)["ingested_at"].to_pylist()
    return min(times, default=None)


def _write_tombstones(lake: Lake, image_ids: Sequence[str], reason: str | None) -> None:
    row = {"forgotten_at": store.now(), "reason": reason}
    known = lake.known("forgotten", "image_id", image_ids)
    fresh = [row | {"image_id": i} for i in image_ids if i not in known]
    lake.insert("forgotten", pa.Table.from_pylist(fresh, schema=schema.FORGOTTEN.arrow()))
    target = image_ids[0] if len(image_ids) == 1 else f"{len(image_ids)} images"
    audit.record(lake, "forget", target, detail={"reason": reason, "images": len(image_ids), "new": len(fresh)})
    lake.sync()


# Spools ----------------------------------------------------------------------------------------------------


def _erase_from_spool(spool: Spool, image_ids: Sequence[str], report: ErasureReport) -> int:
    # From here on no drainer moves any of the images: the next batch reads the tombstones.
    with spool.drainer(DRAINER_SECONDS) as locked:
        if not locked:
            raise LakeBusy(f"the spool {spool.folder} is being drained without a break; try again")
        erased = spool.erase(image_ids)
    # Drained bytes stay in the segment that a server writes to, until it starts another.
    remaining = unsealed = set(spool.erase_drained())
    deadline = time.monotonic() + SEGMENT_SECONDS
    while remaining and time.monotonic() < deadline:
        time.sleep(0.2)
        remaining = unsealed & set(spool.erase_drained())
    report.unfinished += [str(spool.segments / name) for name in sorted(remaining)]
    return erased


# Rows ------------------------------------------------------------------------------------------------------


def _shorten_trees(lake: Lake, image_ids: Sequence[str], report: ErasureReport) -> None:
    """Takes the images out of the sizes and medoids of cluster nodes, and removes nodes that become empty.

    It runs before the members are deleted. Running it twice changes nothing.
    """
    erased = set(image_ids)
    counts = Counter(lake.look_up("cluster_members", ["id"], "image_id", image_ids)["id"].to_pylist())
    rows = lake.look_up("clusters", lake.dataset("clusters").schema.names, "id", sorted(counts)).to_pylist()
    for row in rows:
        members = f"id = {store.literal(row['id'])}"
        row["size"] = lake.dataset("cluster_members").count_rows(members) - counts[row["id"]]
        if row["size"] and not set(row["medoids"]) - erased:
            others = lake.scan("cluster_members", ["image_id"], members)["image_id"].to_pylist()
            row["medoids"] = [next(i for i in others if i not in erased)]
    report.trees = sorted({row["tree"] for row in rows})
    empty = [row["id"] for row in rows if not row["size"]]
    if empty:
        lake.delete("clusters", f"id in ({store.literals(empty)})")
    rows = [row for row in rows if row["size"]]
    if rows:
        lake.update("clusters", pa.Table.from_pylist(rows, schema=schema.CLUSTERS.arrow()))


def _take_from_lists(lake: Lake, image_ids: Sequence[str], report: ErasureReport) -> None:
    """Removes the images from the lists of examples of nodes and searches."""
    erased = set(image_ids)
    for table, columns in LISTS.items():
        rows = lake.scan(table, ["id", *columns]).to_pylist()
        affected = [row["id"] for row in rows if any(erased & set(row[column] or ()) for column in columns)]
        if not affected:
            continue
        rows = lake.look_up(table, lake.dataset(table).schema.names, "id", affected).to_pylist()
        for row in rows:
            for column in columns:
                if row[column] is not None:
                    row[column] = [i for i in row[column] if i not in erased]
        lake.update(table, pa.Table.from_pylist(rows, schema=schema.TABLES[table].arrow()))
        if table == "searches":
            report.searches = sorted(affected)


def _delete(lake: Lake, name: str, image_ids: Sequence[str]) -> int:
    """Removes the rows about these images. Returns their number."""
    total = 0
    for start in range(0, len(image_ids), store.LOOK_UP_VALUES):
        condition = f"image_id in ({store.literals(image_ids[start : start + store.LOOK_UP_VALUES])})"
        count = lake.dataset(name).count_rows(condition)
        if count:
            lake.delete(name, condition)
            total += count
    return total
