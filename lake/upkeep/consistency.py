"""Checks that the rows of a lake agree: keys, images of predictions, thumbnails, hashes, sizes of sets.

Missing rows are no finding if the lake knows why: the server keeps only a share of images, a policy dropped the image,
the image was unreadable or erased. This module knows nothing of files and versions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lake import ids
from lake.labels import retraction
from lake.sql import connections
from lake.storage import blobs, schema, store
from lake.upkeep import erasure, retention, set_aside

if TYPE_CHECKING:
    from lake.storage.store import Lake

Severity = Literal["wrong", "note"]
# How many images are read and hashed, unless all are.
SAMPLE = 200
READ_AT_ONCE = 200


@dataclass(frozen=True)
class DoctorFinding:
    """A finding in words: `what`. Severity `wrong` needs action, as `remedy` says; a `note` is for your information.

    `ids`: all the ids that it is about, where it is about ids.
    """

    check: str
    severity: Severity
    what: str
    remedy: str = ""
    ids: tuple[str, ...] = ()


@dataclass
class ConsistencyReport:
    """`checked`: the amount that each check examined. `mended`: repairs, and versions set aside when opening."""

    findings: list[DoctorFinding] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)
    mended: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        return not any(f.severity == "wrong" for f in self.findings)

    @property
    def advice(self) -> str:
        """What to do, in one sentence."""
        wrong = [finding for finding in self.findings if finding.severity == "wrong"]
        if not wrong:
            return "The lake is sound."
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"The lake is not sound ({wrong[0].check}{more}): {wrong[0].remedy or wrong[0].what}."

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"sound": self.sound, "advice": self.advice}


def keys(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    """Checks that every key has one row."""
    for name, table in schema.TABLES.items():
        if not table.key:
            continue
        query = f'SELECT "{table.key}" AS k, count(*) AS n FROM {name} GROUP BY 1 HAVING n > 1 ORDER BY 1'
        repeated = connections.query(lake, query)
        if not repeated.num_rows:
            continue
        if repair:
            repeats = _repeats(lake, name, table.key, repeated["k"].to_pylist())
            if repeats:
                lake.delete(name, f"_rowid in ({','.join(map(str, repeats))})")
                report.mended.append(f"{name}: removed {len(repeats)} rows that are equal to others")
                continue
        message = f"{name}: {repeated.num_rows:,} keys have more than one row, the first is {repeated['k'][0].as_py()}"
        yield DoctorFinding("keys", "wrong", message, "lakeloop doctor --repair removes rows that are equal to another")


def _repeats(lake: Lake, name: str, key: str, keys: list[Any]) -> list[int]:
    """Row ids of rows equal to an earlier row of their key; empty if any two rows of a key differ."""
    columns = [f.name for f in lake.dataset(name).schema if f.name != "data" and f.name != "ingested_at"]
    texts = store.literals([str(k) for k in keys]) if isinstance(keys[0], str) else ",".join(map(str, keys))
    rows = lake.dataset(name).scanner(columns=columns, filter=f"{key} in ({texts})", with_row_id=True).to_table()
    seen: dict[Any, dict[str, Any]] = {}
    repeats = []
    for row in rows.to_pylist():
        row_id = row.pop("_rowid")
        if row[key] not in seen:
            seen[row[key]] = row
        elif seen[row[key]] == row:
            repeats.append(row_id)
        else:
            return []
    return repeats


def predictions(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    """Checks that every prediction has its image, or that the lake knows why not."""
    dropped_before = retention.dropped_before(lake).get("images")
    missing = connections.query(
        lake,
        "SELECT count(*) AS n, min(prediction_id) AS first FROM samples p WHERE image_status IS NULL"
        " AND image_share IS NULL AND (ingested_at >= $1 OR $1 IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM images i WHERE i.image_id = p.image_id)",
        [dropped_before],
    ).to_pylist()[0]
    if missing["n"]:
        message = f"{missing['n']:,} predictions have no image, the first is {missing['first']}"
        yield DoctorFinding("predictions", "wrong", message, "ingest the images again, or run: lakeloop restore")
    for name in ("labels", "reviews"):
        orphans = connections.query(
            lake,
            f"SELECT count(DISTINCT image_id) AS n FROM {name} l"
            " WHERE NOT EXISTS (SELECT 1 FROM samples p WHERE p.image_id = l.image_id)",
        )["n"][0].as_py()
        if orphans:
            yield DoctorFinding("predictions", "note", f"{name}: {orphans:,} images have no row in samples")


def thumbnails(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    dropped_before = retention.dropped_before(lake).get("thumbnails")
    missing = connections.query(
        lake,
        "SELECT count(*) AS n, min(image_id) AS first FROM images i WHERE (ingested_at >= $1 OR $1 IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM thumbnails t WHERE t.image_id = i.image_id)"
        " AND NOT EXISTS (SELECT 1 FROM samples p WHERE p.image_id = i.image_id AND image_status IS NOT NULL)",
        [dropped_before],
    ).to_pylist()[0]
    if missing["n"]:
        message = f"{missing['n']:,} images have no thumbnail, the first is {missing['first']}"
        yield DoctorFinding(
            "thumbnails", "wrong", message, "run lakeloop restore, or forget these images and ingest them again"
        )


def labels(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    """Looks for labels that say "nothing here" from ingests that refused something, or may have."""
    empty = retraction.empty_labels(lake)
    refusing = Counter(label.ingest for label in empty if label.ingest is not None and label.ingest.rejected)
    for ingest, count in refusing.items():
        message = (
            f"{count:,} images have an empty label from {ingest.path} (job {ingest.job}), of which {ingest.rejected:,}"
            " parts were refused: what was refused there may be what they show"
        )
        remedy = "ingest it again, which takes back what it does not say; or run: lakeloop labels retract"
        yield DoctorFinding("labels", "wrong", message, remedy)
    unknown = [label for label in empty if label.ingest is None]
    if unknown:
        message = (
            f"{len(unknown):,} images have an empty label imported by an earlier release, the first is"
            f" {unknown[0].image_id}: it said so also where it had refused every annotation, and kept no record of it"
        )
        remedy = "ingest their data sets again; or, if they are not known to be empty: lakeloop labels retract --all"
        yield DoctorFinding("labels", "note", message, remedy)


def sets(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    """Checks that a frozen slice or a node has as many members as its size. Erased images still count in slices."""
    frozen = "(SELECT * FROM slices WHERE deleted_at IS NULL AND NOT coalesce(live, false))"
    for table, rows, members in (("slices", frozen, "slice_members"), ("clusters", "clusters", "cluster_members")):
        wrong = connections.query(
            lake,
            f"SELECT s.id, s.size, count(m.image_id) AS n FROM (SELECT DISTINCT id, size FROM {rows}) s"
            f" LEFT JOIN {members} m ON m.id = s.id"
            " GROUP BY ALL HAVING n <> s.size ORDER BY 1",
        ).to_pylist()
        if wrong:
            first = wrong[0]
            message = (
                f"{table}: {first['id']} has size {first['size']:,} but {first['n']:,} members ({len(wrong)} such)"
            )
            yield DoctorFinding("sets", "wrong", message, "create the slice or tree again")
    # Left by an interrupted creation or deletion; retention keeps their images. After a loss of rows of `slices`, they
    # may be all that is left of a slice.
    lost = lake.folder is not None and any(a.missing and a.table == "slices" for _, a in set_aside.lists(lake.folder))
    leftover = connections.query(
        lake,
        "SELECT DISTINCT id FROM slice_members WHERE id NOT IN (SELECT id FROM slices WHERE deleted_at IS NULL)"
        " ORDER BY 1",
    )["id"].to_pylist()
    if leftover and repair and not lost:
        lake.delete("slice_members", f"id in ({store.literals(leftover)})")
        report.mended.append(f"slice_members: removed rows of {len(leftover)} slices that do not exist")
    elif leftover:
        message = f"slice_members has rows of {len(leftover)} slices that do not exist, the first is {leftover[0]}"
        yield DoctorFinding("sets", "note", message, "run lakeloop doctor --repair while no slice is being created")


def erased(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    """Checks that no erased image is back. Predictions that came later may name its id."""
    tombstones = lake.scan("forgotten", ["image_id"])["image_id"].to_pylist()
    back = (
        {i for name in ("images", "thumbnails") for i in lake.known(name, "image_id", tombstones)}
        if tombstones
        else set()
    )
    if back and repair:
        erasure.forget(lake, sorted(back), reason="it came back after its erasure")
        report.mended.append(f"erased {len(back)} images again")
    elif back:
        message = f"{len(back)} erased images are back, the first is {min(back)}"
        yield DoctorFinding("erased", "wrong", message, "run lakeloop doctor --repair or lakeloop forget")


def contents(lake: Lake, report: ConsistencyReport, deep: bool) -> Iterator[DoctorFinding]:
    """Checks that the bytes of images hash to their ids: of all with `deep`, else of a sample."""
    dataset = lake.dataset("images")
    total = dataset.count_rows()
    chosen = (
        dataset.scanner(columns=["image_id"]).to_table() if deep else dataset.sample(min(SAMPLE, total), ["image_id"])
    )
    names = chosen["image_id"].to_pylist() if total else []
    wrong: list[str] = []
    for start in range(0, len(names), READ_AT_ONCE):
        part = names[start : start + READ_AT_ONCE]
        try:
            hashes = {i.image_id: ids.image_id(i.data) for i in blobs.images(lake, part)}
        except (OSError, ValueError) as error:
            yield DoctorFinding("bytes", "wrong", f"images cannot be read: {str(error)[:200]}", "run: lakeloop restore")
            return
        wrong += [i for i in part if hashes.get(i) != i]
    report.checked["images_hashed"] = len(names)
    if wrong:
        message = f"the bytes of {len(wrong):,} images do not match their ids, the first is {wrong[0]}"
        yield DoctorFinding(
            "bytes", "wrong", message, "run lakeloop restore, or forget these images and ingest them again"
        )


CHECKS = (keys, predictions, thumbnails, labels, sets, erased)
