"""Fills from a backup what a repair had to set aside: the rows that were lost, and nothing else.

The lists of `lake/upkeep/set_aside.py` say which rows. Where the ids of lost rows are not known, every row of that
table is taken that the backup has and the lake lacks. Erased images stay erased.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from lake.backups import restore
from lake.errors import CouldNot
from lake.storage import blobs, image_rows, leader_lock, schema
from lake.storage.store import Lake
from lake.upkeep import set_aside
from lake.upkeep.set_aside import AsideList

if TYPE_CHECKING:
    from collections.abc import Sequence

# Images are read and written in parts of so many.
IMAGES_AT_ONCE = 500
LEADER_WAIT = 60.0


def refill(lake: Lake, backup: Path) -> list[str]:
    """Takes lost rows from a backup, a folder or a .tar; returns a sentence for each table.

    Raises BadInput if the backup is damaged, NewerLake if a newer lakeloop made it, CouldNot on object storage,
    LakeBusy if another process maintains the lake.
    """
    folder = lake.folder
    if folder is None:
        raise CouldNot(f"{lake.uri} is on object storage: use the store's own versions")
    missing = [(path, aside) for path, aside in set_aside.lists(folder) if aside.missing]
    if not missing:
        return ["no rows are set aside: there is nothing to fill"]
    with leader_lock.leader(lake, LEADER_WAIT), tempfile.TemporaryDirectory(dir=folder.absolute().parent) as work:
        if backup.is_dir():
            restore.verify(backup)
            source = Lake(str(backup))
        else:
            restore.restore(backup, f"{work}/lake")
            source = Lake(f"{work}/lake")
        sentences = []
        for path, aside in missing:
            filled = min(_fill(lake, source, aside), aside.missing)
            aside.filled += filled
            set_aside.update(path, aside)
            rest = f"; {aside.missing:,} are not in the backup" if aside.missing else ""
            sentences.append(f"{aside.table}: filled {filled:,} of {aside.missing + filled:,} lost rows{rest}")
    return sentences


def _fill(lake: Lake, source: Lake, aside: AsideList) -> int:
    """Adds the lost rows that the backup has; returns their number."""
    name = aside.table
    columns = [f.name for f in source.dataset(name).schema if f.name in lake.dataset(name).schema.names]
    if name == "images":
        columns = [column for column in columns if column != "data"]
    key = schema.TABLES[name].key
    known_ids = [column for column, values in aside.ids.items() if values]
    column = key if key in known_ids else next(iter(known_ids), None)
    rows = (
        source.look_up(name, columns, column, aside.ids[column]) if column is not None else source.scan(name, columns)
    )
    if "image_id" in columns:
        names = sorted(set(rows["image_id"].to_pylist()))
        erased = pa.array(sorted(lake.erased(names)) if names else [], pa.string())
        rows = rows.filter(pc.invert(pc.is_in(rows["image_id"].combine_chunks(), erased)))
    if key:
        values = rows[key].to_pylist()
        known = (
            lake.known(name, key, [str(value) for value in values])
            if pa.types.is_string(rows.schema.field(key).type)
            else set(lake.scan(name, [key])[key].to_pylist())
        )
        rows = rows.filter(pa.array([value not in known for value in values], pa.bool_()))
    else:
        present = {str(row) for row in lake.scan(name, columns).to_pylist()}
        rows = rows.filter(pa.array([str(row) not in present for row in rows.to_pylist()], pa.bool_()))
    if name == "images":
        return _fill_images(lake, source, rows["image_id"].to_pylist())
    target = lake.dataset(name).schema
    full = {f.name: rows[f.name].cast(f.type) if f.name in columns else pa.nulls(rows.num_rows, f.type) for f in target}
    return lake.insert(name, pa.table(full, schema=target)) if rows.num_rows else 0


def _fill_images(lake: Lake, source: Lake, names: Sequence[str]) -> int:
    added = 0
    columns = [column.name for column in schema.IMAGES.columns if column.name != "data"]
    present = [column for column in columns if column in source.dataset("images").schema.names]
    for start in range(0, len(names), IMAGES_AT_ONCE):
        part = names[start : start + IMAGES_AT_ONCE]
        row_of = {row["image_id"]: row for row in source.look_up("images", present, "image_id", part).to_pylist()}
        rows = [dict.fromkeys(columns) | row_of[i.image_id] | {"data": i.data} for i in blobs.images(source, part)]
        added += lake.insert("images", image_rows.images_table(rows))
    return added
