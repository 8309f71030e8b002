"""Whether the rows of a lake go together: one row a key, answers with images, images with thumbnails and their hash,
sets with their sizes.

What is missing for a reason that the lake itself tells is no finding: a share of the traffic is kept, a policy let go,
an image could not be read, was erased. It knows nothing of files and versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lake import ids
from lake.sql import connections
from lake.storage import blobs, schema, store
from lake.upkeep import erasure, retention

if TYPE_CHECKING:
    from lake.storage.store import Lake

Severity = Literal["wrong", "note"]
# Images whose bytes are read and hashed unless all are.
SAMPLE = 200
READ_AT_ONCE = 200


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


def keys(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    """Every key has one row."""
    for name, table in schema.TABLES.items():
        if not table.key:
            continue
        query = f'SELECT "{table.key}" AS k, count(*) AS n FROM {name} GROUP BY 1 HAVING n > 1 ORDER BY 1'
        twice = connections.query(lake, query)
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


def answers(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    """Every answer's image is there, or the lake says why not."""
    gone = retention.let_go_before(lake).get("images")
    missing = connections.query(
        lake,
        "SELECT count(*) AS n, min(prediction_id) AS first FROM predictions p WHERE image_status IS NULL"
        " AND image_share IS NULL AND (ingested_at >= $1 OR $1 IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM images i WHERE i.image_id = p.image_id)",
        [gone],
    ).to_pylist()[0]
    if missing["n"]:
        what = f"{missing['n']:,} answers are about images that are not there, the first is {missing['first']}"
        yield Finding("answers", "wrong", what, "ingest the images again, or: lakeloop restore")
    for name in ("labels", "reviews"):
        orphans = connections.query(
            lake,
            f"SELECT count(DISTINCT image_id) AS n FROM {name} l"
            " WHERE NOT EXISTS (SELECT 1 FROM predictions p WHERE p.image_id = l.image_id)",
        )["n"][0].as_py()
        if orphans:
            yield Finding("answers", "note", f"{name}: {orphans:,} images have no row in predictions")


def thumbnails(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    gone = retention.let_go_before(lake).get("thumbnails")
    missing = connections.query(
        lake,
        "SELECT count(*) AS n, min(image_id) AS first FROM images i WHERE (ingested_at >= $1 OR $1 IS NULL)"
        " AND NOT EXISTS (SELECT 1 FROM thumbnails t WHERE t.image_id = i.image_id)"
        " AND NOT EXISTS (SELECT 1 FROM predictions p WHERE p.image_id = i.image_id AND image_status IS NOT NULL)",
        [gone],
    ).to_pylist()[0]
    if missing["n"]:
        what = f"{missing['n']:,} images have no thumbnail, the first is {missing['first']}"
        yield Finding("thumbnails", "wrong", what, "lakeloop restore, or forget those images and ingest them again")


def sets(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
    """A frozen slice or a node has as many members as it says. Erased images stay members of slices by their ids."""
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
            what = f"{table}: {first['id']} says {first['size']:,} images and has {first['n']:,} ({len(wrong)} such)"
            yield Finding("sets", "wrong", what, "make the slice or tree again")
    # Of a creation or a deletion that was interrupted; they hold images against retention.
    leftover = connections.query(
        lake,
        "SELECT DISTINCT id FROM slice_members WHERE id NOT IN (SELECT id FROM slices WHERE deleted_at IS NULL)"
        " ORDER BY 1",
    )["id"].to_pylist()
    if leftover and repair:
        lake.delete("slice_members", f"id in ({store.literals(leftover)})")
        report.mended.append(f"slice_members: removed what was left of {len(leftover)} slices that are not there")
    elif leftover:
        what = f"slice_members has rows of {len(leftover)} slices that are not there, the first is {leftover[0]}"
        yield Finding("sets", "note", what, "lakeloop doctor --repair, while nobody makes a slice")


def erased(lake: Lake, report: Report, repair: bool) -> Iterator[Finding]:
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


def contents(lake: Lake, report: Report, full: bool) -> Iterator[Finding]:
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
            found = {i.image_id: ids.image_id(i.data) for i in blobs.images(lake, part)}
        except (OSError, ValueError) as error:
            yield Finding("bytes", "wrong", f"images cannot be read: {str(error)[:200]}", "lakeloop restore")
            return
        wrong += [i for i in part if found.get(i) != i]
    report.checked["images_hashed"] = len(names)
    if wrong:
        what = f"the bytes of {len(wrong):,} images are not what was stored, the first is {wrong[0]}"
        yield Finding("bytes", "wrong", what, "lakeloop restore, or forget those images and ingest them again")


CHECKS = (keys, answers, thumbnails, sets, erased)
