"""Letting go of what is old: the bytes of images first, later thumbnails and vectors. Answers stay for good.

An image is as old as the newest answer about it, or as its arrival when that is later. What a label, a slice or a
review holds is never touched. Images are stored in order of arrival, so that whole files fall; a file that only partly
falls is written anew once more than half of it is dead. What was let go is recorded in the audit log, by its age, and
nowhere in the rows: that would mean writing them anew. A file is freed when the versions that name it are removed.
"""

from __future__ import annotations

import datetime as dt
import json
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
# Tables whose rows about an image hold it.
HOLDERS = ("labels", "slice_members", "reviews")
GB = 10**9
DRAINER_SECONDS = 60.0
_SECTIONS = {"images": ("days", "max_gb"), "thumbnails": ("days",), "vectors": ("days",)}


@dataclass(frozen=True)
class Policy:
    """For how many days each is kept, and how many GB (10^9 bytes) of images; None: for good, any number."""

    image_days: float | None = None
    image_gb: float | None = None
    thumbnail_days: float | None = None
    vector_days: float | None = None


@dataclass
class Dropped:
    """What falls of one kind: everything older than `before`, less `held`, which labels, slices or reviews hold.

    `bytes` are those of the things themselves.
    """

    items: int = 0
    bytes: int = 0
    held: int = 0
    before: dt.datetime | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"before": None if self.before is None else self.before.isoformat()}


@dataclass
class Report:
    """What falls, or fell, of each kind. `over_gb`: by how much what is held exceeds the policy's images.max_gb."""

    images: Dropped = field(default_factory=Dropped)
    thumbnails: Dropped = field(default_factory=Dropped)
    vectors: Dropped = field(default_factory=Dropped)
    over_gb: float = 0.0
    dry_run: bool = False

    def as_dict(self) -> dict[str, Any]:
        kinds = {k: getattr(self, k).as_dict() for k in ("images", "thumbnails", "vectors")}
        return kinds | {"over_gb": self.over_gb, "dry_run": self.dry_run}


def read_policy(path: Path) -> Policy:
    """The policy of a TOML or JSON file. Raises BadInput naming what is wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
        given = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # of both parsers, and of what is no UTF-8
        raise BadInput(f"{path} is no {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    return check_policy(given, str(path))


def check_policy(given: Any, name: str = "the policy") -> Policy:
    """The policy that parsed JSON or TOML says. Raises BadInput naming the key that is wrong."""
    if not isinstance(given, dict):
        raise BadInput(f"{name} must be an object with {', '.join(_SECTIONS)}")
    found: dict[str, float] = {}
    for section, content in given.items():
        if section not in _SECTIONS:
            raise BadInput(f"{name} has no section {section!r}; it takes {', '.join(_SECTIONS)}")
        if not isinstance(content, dict):
            raise BadInput(f"{name}: {section} is {content!r:.80}, not a section with {', '.join(_SECTIONS[section])}")
        for key, value in content.items():
            if key not in _SECTIONS[section]:
                raise BadInput(f"{name}: {section} has no key {key!r}; it takes {', '.join(_SECTIONS[section])}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
                raise BadInput(f"{name}: {section}.{key} is {value!r:.80}, not a number above 0")
            found[f"{section}.{key}"] = float(value)
    if not found:
        raise BadInput(f"{name} says nothing; give for instance [images] with days = 90")
    for later in ("thumbnails.days", "vectors.days"):
        if found.get(later, 1e9) < found.get("images.days", 0):
            raise BadInput(f"{name}: {later} is {found[later]:g}, less than images.days ({found['images.days']:g})")
    if "vectors.days" in found and "images.days" not in found:
        raise BadInput(f"{name}: vectors.days needs images.days: vectors of images that are there are made again")
    return Policy(
        found.get("images.days"), found.get("images.max_gb"), found.get("thumbnails.days"), found.get("vectors.days")
    )


def retain(
    lake: Lake,
    policy: Policy,
    *,
    spools: Sequence[Spool] = (),
    dry_run: bool = False,
    older_than: dt.timedelta = maintenance.OLDER_THAN,
    wait: float = 60.0,
) -> Report:
    """Lets go of what the policy says, and removes versions older than `older_than`, which frees the disk.

    `spools`: those that are being drained into this lake; their drainers pause while it is decided what nobody asks
    about any more. With `dry_run` nothing is changed. Raises LakeBusy when another process maintains the lake.
    """
    run = _Run(lake, spools, dry_run, store.now())
    with leader_lock.leader(lake, wait):
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
            for name in ("images", "thumbnails", "predictions"):
                merging.rewrite_wasteful(lake, name)
                maintenance.remove_versions(lake, name, older_than)
            lake.sync()
    return run.report


def let_go_before(lake: Lake) -> dict[str, dt.datetime]:
    """images, thumbnails, vectors -> up to what age they were let go, by all policies so far."""
    found: dict[str, dt.datetime] = {}
    for text in lake.scan("audit", ["detail"], f"action = '{ACTION}'")["detail"].to_pylist():
        for kind, dropped in json.loads(text).items():
            if dropped["before"] is not None:
                before = dt.datetime.fromisoformat(dropped["before"])
                found[kind] = max(before, found.get(kind, before))
    return found


class _Run:
    def __init__(self, lake: Lake, spools: Sequence[Spool], dry_run: bool, moment: dt.datetime) -> None:
        self.lake = lake
        self.spools = spools
        self.moment = moment
        self.report = Report(dry_run=dry_run)
        self.dropped: set[tuple[str, str]] = set()  # in a dry run: what would not be there any more

    def images(self, limit: dt.datetime) -> None:
        """Drops the bytes of images older than `limit`."""
        for rows in self._image_rows():
            old = rows.filter(pc.less(rows["ingested_at"], pa.scalar(limit, rows["ingested_at"].type)))
            self._drop_images(old, limit)
        self.report.images.before = limit

    def images_above(self, most: int) -> None:
        """Drops the oldest images until at most `most` bytes are left, a file's at a time."""
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
                # What is held does not fall: then more of the file is needed.
                gone = ends[start - 1] if start else 0
                stop = min(int(np.searchsorted(ends, gone + total - most)) + 1, rows.num_rows)
                needed = rows.slice(start, stop - start)
                before = self.report.images.bytes
                limit = pc.max(needed["ingested_at"]).as_py() + dt.timedelta(microseconds=1)
                self._drop_images(needed, limit)
                self.report.images.before = max(limit, self.report.images.before or limit)
                total -= self.report.images.bytes - before
                start = stop
        self.report.over_gb = max(0, total - most) / GB

    def thumbnails(self, limit: dt.datetime) -> None:
        """Drops the thumbnails of images older than `limit`."""
        done = self.report.thumbnails
        for fragment in self.lake.dataset("thumbnails").get_fragments():
            rows = fragment.to_table(columns=["image_id", "jpeg"])
            sizes = pc.binary_length(rows["jpeg"])
            for part in _parts(rows.drop_columns("jpeg").append_column("size_bytes", sizes)):
                names = part["image_id"].to_pylist()
                with self._drainers_paused():
                    fresh = self._since("images", names, limit) | self._since("predictions", names, limit)
                    self._drop("thumbnails", part, fresh, done)
        done.before = limit

    def vectors(self, limit: dt.datetime) -> None:
        """Empties the vectors of images older than `limit`, in every row about them."""
        columns = [r.column for r in self.lake.embedders() if r.dim is not None]
        dims = {r.column: r.dim or 0 for r in self.lake.embedders()}
        done = self.report.vectors
        dataset = self.lake.dataset("predictions")
        for fragment in dataset.get_fragments() if columns else ():
            lacking = {c: nulls.of_fragment(dataset, fragment, c) for c in columns}
            if all(len(offsets) == fragment.physical_rows for offsets in lacking.values()):
                continue
            scanner = fragment.scanner(columns=["prediction_id", "image_id", "ingested_at"], with_row_address=True)
            rows = scanner.to_table()
            places = fragments.offsets(np.asarray(rows["_rowaddr"]))
            present = {c: ~np.isin(places, offsets) for c, offsets in lacking.items()}
            old = np.asarray(pc.less(rows["ingested_at"], pa.scalar(limit, rows["ingested_at"].type)))
            chosen = old & np.any(list(present.values()), axis=0)
            sizes = sum(present[c].astype(np.int64) * dims[c] * 4 for c in columns)
            rows = rows.append_column("size_bytes", pa.array(sizes)).filter(pa.array(chosen))
            for part in _parts(rows):
                self._empty_vectors(part, columns, limit, done)
        done.before = limit

    def record(self) -> None:
        """Says in the audit log up to what age was let go: it explains what is missing from then on."""
        kinds = {k: v for k, v in self.report.as_dict().items() if isinstance(v, dict)}
        audit.record(self.lake, ACTION, None, detail=kinds)

    # ---------------------------------------------------------------------------------------------------------

    def _image_rows(self) -> Iterator[pa.Table]:
        """image_id, ingested_at and size_bytes of each file's images."""
        for fragment in self.lake.dataset("images").get_fragments():
            rows = fragment.to_table(columns=["image_id", "ingested_at", "size_bytes"])
            if rows.num_rows:
                yield rows

    def _drop_images(self, rows: pa.Table, limit: dt.datetime) -> None:
        for part in _parts(rows):
            with self._drainers_paused():
                fresh = self._since("predictions", part["image_id"].to_pylist(), limit)
                self._drop("images", part, fresh, self.report.images)

    def _drop(self, name: str, rows: pa.Table, fresh: set[str], done: Dropped) -> None:
        """Deletes the rows that are neither fresh nor held."""
        names = [i for i in rows["image_id"].to_pylist() if i not in fresh and (name, i) not in self.dropped]
        held = self._held(names)
        chosen = [i for i in names if i not in held]
        done.held += len(held)
        if not chosen:
            return
        done.items += len(chosen)
        done.bytes += pc.sum(rows.filter(pc.is_in(rows["image_id"], pa.array(chosen)))["size_bytes"]).as_py()
        if self.report.dry_run:
            self.dropped |= {(name, i) for i in chosen}
        else:
            self.lake.delete(name, f"image_id in ({store.literals(chosen)})")

    def _empty_vectors(self, rows: pa.Table, columns: Sequence[str], limit: dt.datetime, done: Dropped) -> None:
        names = sorted(set(rows["image_id"].to_pylist()))
        fresh = self._since("predictions", names, limit)
        held = self._held(names) - fresh
        done.held += len(held)
        rows = rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(sorted(held | fresh), pa.string()))))
        if not rows.num_rows:
            return
        done.items += rows.num_rows
        done.bytes += pc.sum(rows["size_bytes"]).as_py()
        if not self.report.dry_run:
            condition = f"prediction_id in ({store.literals(rows['prediction_id'].to_pylist())})"
            nothing = dict.fromkeys(columns, "NULL")
            self.lake.commit("predictions", lambda: self.lake.dataset("predictions").update(nothing, where=condition))

    def _since(self, table: str, names: Sequence[str], limit: dt.datetime) -> set[str]:
        """Those of the images that a row of the table has been about since then."""
        since = f"ingested_at >= timestamp '{limit.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S.%f}'"
        return set(self.lake.look_up(table, ["image_id"], "image_id", names, since)["image_id"].to_pylist())

    def _held(self, names: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for table in HOLDERS:
            found |= self.lake.known(table, "image_id", list(names)) if names else set()
        return found

    @contextmanager
    def _drainers_paused(self) -> Iterator[None]:
        """A drainer at work may have found an image known that is about to fall: it would not store it again."""
        with ExitStack() as stack:
            for spool in () if self.report.dry_run else self.spools:
                if not stack.enter_context(spool.drainer(DRAINER_SECONDS)):
                    raise LakeBusy(f"the spool {spool.folder} is being drained without a pause; try again")
            yield


def _parts(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, store.LOOK_UP_VALUES):
        yield rows.slice(start, store.LOOK_UP_VALUES)
