"""Checks what rows refer to: the files of runs, the labels and images of frozen slices, the numbers in vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from lake.sql import connections
from lake.storage import store
from lake.storage.lance_files import checksums
from lake.upkeep.consistency import ConsistencyReport, DoctorFinding

if TYPE_CHECKING:
    from lake.storage.store import Lake


def run_files(lake: Lake, report: ConsistencyReport, *, deep: bool) -> Iterator[DoctorFinding]:
    """Checks that the files of finished runs are there with their sizes; with `deep`, with their SHA-256."""
    if lake.folder is None:
        return
    missing, changed = [], []
    for run in lake.scan("runs", ["id", "artifacts"], "status = 'done' AND artifacts IS NOT NULL").to_pylist():
        for artifact in json.loads(run["artifacts"]).values():
            path = lake.folder / str(artifact["path"])
            if not path.is_file():
                missing.append(run["id"])
            elif path.stat().st_size != artifact["bytes"] or (
                deep and not checksums.matches(path, str(artifact["sha256"]))
            ):
                changed.append(run["id"])
    for runs, what in ((missing, "are missing"), (changed, "have changed")):
        if runs:
            names = tuple(sorted({*runs}))
            words = f"files of {len(names)} runs {what}, the first is run {names[0]}"
            yield DoctorFinding(
                "runs", "wrong", words, "restore the folder `runs` from a backup, or train again", names
            )


def vectors(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    """Checks that every vector is finite and not zero: such a vector is like nothing, or like everything."""
    import numpy as np

    for record in lake.embedders():
        if record.dim is None:
            continue
        bad: list[str] = []
        columns, filled = ["image_id", record.column], f"{record.column} IS NOT NULL"
        for batch in lake.dataset("samples").scanner(columns=columns, filter=filled).to_batches():
            values = batch[record.column].flatten().to_numpy(zero_copy_only=False).reshape(-1, record.dim)
            # The sum of squares of a vector is finite and positive exactly if the vector is.
            squares = np.einsum("ij,ij->i", values, values, dtype=np.float64)
            wrong = np.flatnonzero(~(np.isfinite(squares) & (squares > 0)))
            bad += batch["image_id"].take(wrong).to_pylist() if len(wrong) else []
        if bad:
            names = tuple(sorted({*bad}))
            words = f"{record.name}: vectors of {len(names):,} images are zero or not finite, the first is {names[0]}"
            if repair:
                text = store.literals(list(names))
                lake.commit("samples", partial(_forget_vectors, lake, record.column, text))
                report.mended.append(f"{words}; removed them: lakeloop embed makes them again")
                continue
            yield DoctorFinding("vectors", "wrong", words, "lakeloop doctor --repair removes them", names)


def frozen_slices(lake: Lake, report: ConsistencyReport, repair: bool) -> Iterator[DoctorFinding]:
    """Checks that frozen slices have the labels they were frozen with, and their images. Erased ones stay gone."""
    members = (
        "SELECT m.id, m.image_id, m.label_events FROM slice_members m JOIN slices s ON s.id = m.id"
        " WHERE s.deleted_at IS NULL AND NOT coalesce(s.live, false)"
        " AND NOT EXISTS (SELECT 1 FROM forgotten f WHERE f.image_id = m.image_id)"
    )
    labels = connections.query(
        lake,
        f"SELECT id, image_id FROM (SELECT id, image_id, unnest(label_events) AS event_id FROM ({members})) e"
        " WHERE NOT EXISTS (SELECT 1 FROM labels l WHERE l.event_id = e.event_id) ORDER BY id, image_id",
    ).to_pylist()
    images = connections.query(
        lake,
        f"SELECT id, image_id FROM ({members}) m"
        " WHERE NOT EXISTS (SELECT 1 FROM samples p WHERE p.image_id = m.image_id) ORDER BY id, image_id",
    ).to_pylist()
    remedy = "lakeloop doctor --restore-from BACKUP; until then, exports and training refuse these slices"
    for rows, what in ((labels, "labels"), (images, "rows of samples")):
        if rows:
            names = tuple(sorted({row["image_id"] for row in rows}))
            ids = sorted({row["id"] for row in rows})
            words = f"{what} of {len(names):,} images of {len(ids)} frozen slices are gone, the first slice is {ids[0]}"
            yield DoctorFinding("slices", "wrong", words, remedy, names)


CHECKS = (vectors, frozen_slices)


def _forget_vectors(lake: Lake, column: str, names: str) -> None:
    lake.writable("samples").update({column: "NULL"}, where=f"image_id in ({names})")
