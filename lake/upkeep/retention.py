"""Drops old data as a policy says: first the bytes of images, later thumbnails and vectors. Predictions always stay.

The age of an image counts from its newest prediction, or from its arrival if that is later. Images with a label, a
slice or a review are kept. Images are stored in order of arrival, so that whole files become free; a partly dead file
is rewritten once more than half of it is dead. The audit log records up to which age data was dropped; the rows do not,
because that would rewrite them. A file is deleted when the versions that use it are removed.
"""

from __future__ import annotations

import datetime as dt
import json
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lake.access import audit
from lake.errors import BadInput, LakeBusy
from lake.storage import leader_lock, store
from lake.storage.lance_files import fragments, merging, nulls
from lake.upkeep import maintenance

if TYPE_CHECKING:
    from lake.spool.spool import Spool
    from lake.storage.store import Lake

ACTION = "retain"
# Tables whose rows keep an image from being dropped.
HOLDERS = ("labels", "slice_members", "reviews")
# What it drops from.
TABLES = ("images", "thumbnails", "samples")
GB = 10**9
DRAINER_SECONDS = 60.0
_SECTIONS = {"images": ("days", "max_gb"), "thumbnails": ("days",), "vectors": ("days",)}


@dataclass(frozen=True)
class RetentionPolicy:
    """How many days each kind of data is kept, and how many GB (10^9 bytes) of images; None is without limit."""

    image_days: float | None = None
    image_gb: float | None = None
    thumbnail_days: float | None = None
    vector_days: float | None = None


@dataclass
class Dropped:
    """The dropped data of one kind: everything older than `before`, except `held` items with a label, slice or review.

    `bytes` is the size of the data itself, not of its files.
    """

    items: int = 0
    bytes: int = 0
    held: int = 0
    before: dt.datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"before": None if self.before is None else self.before.isoformat()}


@dataclass
class RetentionReport:
    """The dropped data of each kind. `over_gb`: by how much the images that stay exceed images.max_gb of the policy.

    `freed_bytes`: by how much the files of the lake's tables are smaller now; None after a dry run and on an object
    store. It is less than was dropped while older versions, or the rest of a file that is half alive, need the bytes.
    """

    images: Dropped = field(default_factory=Dropped)
    thumbnails: Dropped = field(default_factory=Dropped)
    vectors: Dropped = field(default_factory=Dropped)
    over_gb: float = 0.0
    freed_bytes: int | None = None
    dry_run: bool = False

    def as_dict(self) -> dict[str, Any]:
        kinds = {k: getattr(self, k).as_dict() for k in ("images", "thumbnails", "vectors")}
        return kinds | {"over_gb": self.over_gb, "freed_bytes": self.freed_bytes, "dry_run": self.dry_run}


def read_policy(path: Path) -> RetentionPolicy:
    """Reads the policy from a TOML or JSON file. Raises BadInput naming the error in it."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # from both parsers, and for text that is not UTF-8
        raise BadInput(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    return check_policy(content, str(path))


def check_policy(content: Any, name: str = "the policy") -> RetentionPolicy:
    """The policy in parsed JSON or TOML. Raises BadInput naming the wrong key."""
    if not isinstance(content, dict):
        raise BadInput(f"{name} must be an object with {', '.join(_SECTIONS)}")
    limits: dict[str, float] = {}
    for section, values in content.items():
        if section not in _SECTIONS:
            raise BadInput(f"{name} has no section {section!r}; it takes {', '.join(_SECTIONS)}")
        if not isinstance(values, dict):
            raise BadInput(f"{name}: {section} is {values!r:.80}, not a section with {', '.join(_SECTIONS[section])}")
        for key, value in values.items():
            if key not in _SECTIONS[section]:
                raise BadInput(f"{name}: {section} has no key {key!r}; it takes {', '.join(_SECTIONS[section])}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
                raise BadInput(f"{name}: {section}.{key} is {value!r:.80}; it must be a number above 0")
            limits[f"{section}.{key}"] = float(value)
    if not limits:
        raise BadInput(f"{name} is empty; write for example [images] with days = 90")
    for later in ("thumbnails.days", "vectors.days"):
        if limits.get(later, 1e9) < limits.get("images.days", 0):
            raise BadInput(
                f"{name}: {later} is {limits[later]:g}; it must be at least images.days ({limits['images.days']:g})"
            )
    if "vectors.days" in limits and "images.days" not in limits:
        raise BadInput(
            f"{name}: vectors.days needs images.days: while the image is there, its vector would be computed again"
        )
    return RetentionPolicy(
        limits.get("images.days"),
        limits.get("images.max_gb"),
        limits.get("thumbnails.days"),
        limits.get("vectors.days"),
    )


def retain(
    lake: Lake,
    policy: RetentionPolicy,
    *,
    spools: Sequence[Spool] = (),
    dry_run: bool = False,
    older_than: dt.timedelta = maintenance.OLDER_THAN,
    wait: float = 60.0,
) -> RetentionReport:
    """Drops the data that the policy names, and removes versions older than `older_than`, which frees the disk.

    `spools` are those drained into this lake: their drainers pause while it looks for new predictions of old images.
    With `dry_run` it changes nothing. Raises LakeBusy if another process maintains the lake.
    """
    run = _Retention(lake, spools, dry_run, store.now())
    with leader_lock.leader(lake, wait):
        size_before = _size_on_disk(lake)
        if policy.image_days is not None:
            run.images(run.moment - dt.timedelta(days=policy.image_days))
        if policy.image_gb is not None:
            run.images_above(int(policy.image_gb * GB))
        if policy.thumbnail_days is not None:
            run.thumbnails(run.moment - dt.timedelta(days=policy.thumbnail_days))
        if policy.vector_days is not None:
            run.vectors(run.moment - dt.timedelta(days=policy.vector_days))
        if not dry_run:
            run.record()
            for name in TABLES:
                merging.rewrite_wasteful(lake, name)
                maintenance.remove_versions(lake, name, older_than)
            lake.sync()
            size_after = _size_on_disk(lake)
            if size_before is not None and size_after is not None:
                run.report.freed_bytes = max(0, size_before - size_after)
    return run.report


def _size_on_disk(lake: Lake) -> int | None:
    """Bytes of all files of the tables that retention changes; None on an object store."""
    if lake.folder is None:
        return None
    size = 0
    for name in TABLES:
        for path in (lake.folder / f"{name}.lance").rglob("*"):
            with suppress(FileNotFoundError):  # another process has just removed it
                size += path.stat().st_size if path.is_file() else 0
    return size


def dropped_before(lake: Lake) -> dict[str, dt.datetime]:
    """images, thumbnails, vectors -> the time before which they were dropped, over all policies so far."""
    limits: dict[str, dt.datetime] = {}
    for text in lake.scan("audit", ["detail"], f"action = '{ACTION}'")["detail"].to_pylist():
        for kind, dropped in json.loads(text).items():
            if dropped["before"] is not None:
                before = dt.datetime.fromisoformat(dropped["before"])
                limits[kind] = max(before, limits.get(kind, before))
    return limits


class _Retention:
    def __init__(self, lake: Lake, spools: Sequence[Spool], dry_run: bool, moment: dt.datetime) -> None:
        self.lake = lake
        self.spools = spools
        self.moment = moment
        self.report = RetentionReport(dry_run=dry_run)
        self.dropped: set[tuple[str, str]] = set()  # (table, image_id); in a dry run: what would be deleted
        self.held: dict[str, set[str]] = {name: set() for name in TABLES}  # an image may be looked at twice

    def images(self, limit: dt.datetime) -> None:
        """Drops the bytes of images older than `limit`."""
        for rows in self._image_rows():
            old = rows.filter(pc.less(rows["ingested_at"], pa.scalar(limit, rows["ingested_at"].type)))
            self._drop_images(old, limit)
        self.report.images.before = limit

    def images_above(self, most: int) -> None:
        """Drops the oldest images, file by file, until at most `most` bytes are left."""
        files = sorted(self._image_rows(), key=lambda rows: pc.min(rows["ingested_at"]).as_py())
        total = sum(pc.sum(rows["size_bytes"]).as_py() for rows in files)
        total -= self.report.images.bytes if self.report.dry_run else 0
        for rows in files:
            if total <= most:
                break
            rows = rows.sort_by("ingested_at")
            ends = np.cumsum(rows["size_bytes"].to_numpy())
            start = 0
            while start < rows.num_rows and total > most:
                # Held images are not dropped: then more of the file is needed.
                passed = ends[start - 1] if start else 0
                stop = min(int(np.searchsorted(ends, passed + total - most)) + 1, rows.num_rows)
                part = rows.slice(start, stop - start)
                before = self.report.images.bytes
                limit = pc.max(part["ingested_at"]).as_py() + dt.timedelta(microseconds=1)
                self._drop_images(part, limit)
                self.report.images.before = max(limit, self.report.images.before or limit)
                total -= self.report.images.bytes - before
                start = stop
        self.report.over_gb = max(0, total - most) / GB

    def thumbnails(self, limit: dt.datetime) -> None:
        """Drops the thumbnails of images older than `limit`."""
        dropped = self.report.thumbnails
        for fragment in self.lake.dataset("thumbnails").get_fragments():
            rows = fragment.to_table(columns=["image_id", "jpeg"])
            sizes = pc.binary_length(rows["jpeg"])
            for part in _parts(rows.drop_columns("jpeg").append_column("size_bytes", sizes)):
                names = part["image_id"].to_pylist()
                with self._drainers_paused():
                    fresh = self._since("images", names, limit) | self._since("samples", names, limit)
                    self._drop("thumbnails", part, fresh, dropped)
        dropped.before = limit

    def vectors(self, limit: dt.datetime) -> None:
        """Empties the vectors of images older than `limit`, in every row about them."""
        columns = [r.column for r in self.lake.embedders() if r.dim is not None]
        dims = {r.column: r.dim or 0 for r in self.lake.embedders()}
        dropped = self.report.vectors
        dataset = self.lake.dataset("samples")
        for fragment in dataset.get_fragments() if columns else ():
            lacking = {c: nulls.of_fragment(dataset, fragment, c) for c in columns}
            if all(len(offsets) == fragment.physical_rows for offsets in lacking.values()):
                continue
            scanner = fragment.scanner(columns=["prediction_id", "image_id", "ingested_at"], with_row_address=True)
            rows = scanner.to_table()
            row_offsets = fragments.offsets(np.asarray(rows["_rowaddr"]))
            present = {c: ~np.isin(row_offsets, offsets) for c, offsets in lacking.items()}
            old = np.asarray(pc.less(rows["ingested_at"], pa.scalar(limit, rows["ingested_at"].type)))
            due = old & np.any(list(present.values()), axis=0)
            sizes = sum(present[c].astype(np.int64) * dims[c] * 4 for c in columns)
            rows = rows.append_column("size_bytes", pa.array(sizes)).filter(pa.array(due))
            for part in _parts(rows):
                self._empty_vectors(part, columns, limit, dropped)
        dropped.before = limit

    def record(self) -> None:
        """Records in the audit log up to which age data was dropped: it explains why it is missing."""
        kinds = {k: v for k, v in self.report.as_dict().items() if isinstance(v, dict)}
        audit.record(self.lake, ACTION, None, detail=kinds)

    # ---------------------------------------------------------------------------------------------------------

    def _image_rows(self) -> Iterator[pa.Table]:
        """image_id, ingested_at and size_bytes of the images, one table a file."""
        for fragment in self.lake.dataset("images").get_fragments():
            rows = fragment.to_table(columns=["image_id", "ingested_at", "size_bytes"])
            if rows.num_rows:
                yield rows

    def _drop_images(self, rows: pa.Table, limit: dt.datetime) -> None:
        for part in _parts(rows):
            with self._drainers_paused():
                fresh = self._since("samples", part["image_id"].to_pylist(), limit)
                self._drop("images", part, fresh, self.report.images)

    def _drop(self, name: str, rows: pa.Table, fresh: set[str], dropped: Dropped) -> None:
        """Deletes the rows whose image is neither in `fresh` nor held."""
        names = [i for i in rows["image_id"].to_pylist() if i not in fresh and (name, i) not in self.dropped]
        held = self._held(names)
        deleted = [i for i in names if i not in held]
        self.held[name] |= held
        dropped.held = len(self.held[name])
        if not deleted:
            return
        dropped.items += len(deleted)
        dropped.bytes += pc.sum(rows.filter(pc.is_in(rows["image_id"], pa.array(deleted)))["size_bytes"]).as_py()
        if self.report.dry_run:
            self.dropped |= {(name, i) for i in deleted}
        else:
            self.lake.delete(name, f"image_id in ({store.literals(deleted)})")

    def _empty_vectors(self, rows: pa.Table, columns: Sequence[str], limit: dt.datetime, dropped: Dropped) -> None:
        names = sorted(set(rows["image_id"].to_pylist()))
        fresh = self._since("samples", names, limit)
        held = self._held(names) - fresh
        self.held["samples"] |= held
        dropped.held = len(self.held["samples"])
        rows = rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(sorted(held | fresh), pa.string()))))
        if not rows.num_rows:
            return
        dropped.items += rows.num_rows
        dropped.bytes += pc.sum(rows["size_bytes"]).as_py()
        if not self.report.dry_run:
            condition = f"prediction_id in ({store.literals(rows['prediction_id'].to_pylist())})"
            nothing = dict.fromkeys(columns, "NULL")
            self.lake.commit("samples", lambda: self.lake.dataset("samples").update(nothing, where=condition))

    def _since(self, table: str, names: Sequence[str], limit: dt.datetime) -> set[str]:
        """The images that a row of the table names since `limit`."""
        since = f"ingested_at >= timestamp '{limit.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S.%f}'"
        return set(self.lake.look_up(table, ["image_id"], "image_id", names, since)["image_id"].to_pylist())

    def _held(self, names: Sequence[str]) -> set[str]:
        held: set[str] = set()
        for table in HOLDERS:
            held |= self.lake.known(table, "image_id", list(names)) if names else set()
        return held

    @contextmanager
    def _drainers_paused(self) -> Iterator[None]:
        """Pauses the drainers: one of them may have just seen that an image is stored, and would not store it again."""
        with ExitStack() as stack:
            for spool in () if self.report.dry_run else self.spools:
                if not stack.enter_context(spool.drainer(DRAINER_SECONDS)):
                    raise LakeBusy(f"the spool {spool.folder} is being drained without a break; try again")
            yield


def _parts(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, store.LOOK_UP_VALUES):
        yield rows.slice(start, store.LOOK_UP_VALUES)
