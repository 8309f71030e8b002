"""A lake damaged at random is repaired: no row whose files are intact is lost, and every lost row is named."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lake
from lake import ids, slices
from lake.open_lake import OpenLake
from lake.storage import blobs, leader_lock, schema, store
from lake.storage.lance_files import checksums, table_files
from lake.storage.store import Lake
from lake.upkeep import doctor, maintenance, repair, set_aside
from tests.lake import prediction_rows, stock

pytestmark = pytest.mark.slow

Row = tuple[str, str]  # a table, and the row as JSON without vectors


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with commits before and after its files were recorded, deleted and updated rows, vectors and a tag."""
    lk = lake.create(str(tmp_path_factory.mktemp("whole") / "lake"), embedders=["x"])
    stock.bind(lk)
    for start in range(0, 12, 4):
        stock.add(lk, range(start, start + 4))
        prediction_rows.label(
            lk, *((stock.image_id(n), f"class {n % 3}", store.now()) for n in range(start, start + 4))
        )
    stock.embed(lk, range(8))
    slices.create(lk, "odd", ids=[stock.image_id(n) for n in range(5)])
    slices.create(lk, "even", ids=[stock.image_id(n) for n in range(5, 8)])
    lk.delete("labels", f"image_id = '{stock.image_id(1)}'")
    lk.dataset("samples").tags.create("model-7", lk.version("samples"))
    checksums.record(lk)
    stock.add(lk, range(12, 16))
    prediction_rows.label(lk, (stock.image_id(12), "late", store.now()))
    slices.set_role(lk, slices.get(lk, "odd"), "evaluation")  # an update of a row
    lk.delete("labels", f"image_id = '{stock.image_id(2)}'")
    stock.embed(lk, range(8, 12))
    shutil.copytree(lk.uri, Path(lk.uri).with_name("recorded"), copy_function=shutil.copy2)
    checksums.record(OpenLake(str(Path(lk.uri).with_name("recorded"))))
    return Path(lk.uri)


@dataclass
class Stored:
    """The rows of a lake, with the files that each needs, and the vectors by prediction_id."""

    rows: dict[Row, set[str]]
    vectors: dict[str, tuple[str, list[float]]]


def stored(root: Path) -> Stored:
    """Everything that a sound lake has."""
    lk = OpenLake(str(root))
    rows: dict[Row, set[str]] = {}
    vectors: dict[str, tuple[str, list[float]]] = {}
    for name, table in schema.TABLES.items():
        for fragment in lk.dataset(name).get_fragments():
            files = [f"{name}.lance/data/{file.path}" for file in fragment.metadata.files]
            columns = [f.name for f in lk.dataset(name).schema if f.name not in ("data", "emb_x")]
            for row in fragment.to_table(columns=columns).to_pylist():
                # The first file has the key; what the others have can be empty without it.
                rows[name, json.dumps(row, default=str, sort_keys=True)] = {files[0]}
            if name == "samples" and len(files) > 1:
                for row in fragment.to_table(columns=[table.key, "emb_x"]).to_pylist():
                    vectors[row[table.key]] = (files[1], row["emb_x"])
    return Stored(rows, vectors)


def keys_of(rows: Iterator[Row] | set[Row] | dict[Row, Any]) -> set[tuple[str, str]]:
    return {(name, str(json.loads(text).get(schema.TABLES[name].key, text))) for name, text in rows}


def newest_version(root: Path, name: str) -> int:
    return table_files.manifests(root / f"{name}.lance")[0][0]


DAMAGES = ("delete", "cut", "flip", "older")


def damage(root: Path, rng: random.Random, kind: str) -> str:
    """Damages a file of the lake; returns its path."""
    recorded = {f"{name}.lance/{path}" for name in schema.TABLES for path in checksums.read(root, name).files}
    manifests = {name: table_files.manifests(root / f"{name}.lance")[:1] for name in schema.TABLES}
    newest = {p.relative_to(root).as_posix(): name for name, listed in manifests.items() for _, p in listed}
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.stat().st_size]
    if rng.random() < 0.3:
        files = [p for p in files if p.relative_to(root).as_posix() in newest]
    elif rng.random() < 0.8:
        files = [p for p in files if p.suffix in (".lance", ".arrow")]
    if kind in ("flip", "older"):  # where no hash is recorded, other bytes are other values
        known = {f for f, n in newest.items() if checksums.read(root, n).version == newest_version(root, n)}
        files = [p for p in files if p.relative_to(root).as_posix() in recorded | known]
    path = rng.choice(files)
    data = path.read_bytes()
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "flip":
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
    else:
        written = path.stat().st_mtime
        older = [p for p in path.parent.glob("*" + path.suffix) if p != path and p.stat().st_mtime <= written]
        path.write_bytes(rng.choice(older).read_bytes() if older else b"")
    return path.relative_to(root).as_posix()


def damaged_and_repaired(whole: Path, root: Path, seed: int, sound: Stored) -> Counter[str]:
    """Damages a copy one to seven times, repairs it, and compares it with what it had."""
    rng = random.Random(seed)
    shutil.copytree(whole, root, copy_function=shutil.copy2)
    kinds = rng.choices(DAMAGES, k=rng.choice((1, 2, 3, 4, 7)))
    harmed = [damage(root, rng, kind) for kind in kinds]
    story = f"seed {seed}: {list(zip(kinds, harmed, strict=True))}"
    at_length = seed % 4 == 0  # the whole doctor takes a second
    try:
        if at_length:
            doctor.examine(str(root))  # never raises, whatever is damaged
            assert not doctor.examine(str(root), repair=True).sound or not set_aside_rows(root)
        else:
            repaired(root)
    except lake.errors.LakeloopError as error:
        raise AssertionError(story) from error
    lk = lake.open(str(root))
    left = stored(root).rows
    bad = {path for path in harmed if "/data/" in path}
    folders = {path.rpartition("/")[0] + ".lance" for path in bad if path.count("/") > 2}
    lost = {row for row, files in sound.rows.items() if files & (bad | folders)}
    # No row whose files are intact is gone, and nothing is there that was not.
    missing = sorted(keys_of(sound.rows.keys() - lost) - keys_of(left))
    assert missing == [], story
    new = keys_of(left) - keys_of(sound.rows)
    undeleted = {("labels", key) for key in new_labels(lk)} if any("_deletions" in path for path in harmed) else set()
    manifests = any("_versions" in path for path in harmed)
    assert new <= undeleted | {pair for pair in new if pair[0] in ("migrations",)} or manifests, story
    gone = keys_of(lost) - keys_of(left)
    lists = [aside for _, aside in set_aside.lists(root)]
    assert sum(aside.missing for aside in lists) >= len(gone), story
    named = {value for aside in lists for values in aside.ids.values() for value in values}
    # Images are exact to the byte, vectors equal or empty.
    present = lk.scan("images", ["image_id"])["image_id"].to_pylist()
    assert all(ids.image_id(image.data) == image.image_id for image in blobs.images(lk, present)), story
    for row in lk.scan("samples", ["prediction_id", "emb_x"]).to_pylist():
        known = sound.vectors.get(row["prediction_id"])
        assert row["emb_x"] is None or (known is not None and row["emb_x"] == known[1]), story
        assert row["emb_x"] is not None or known is None or known[0] in bad or manifests, story
    # A second repair changes nothing.
    versions = {name: newest_version(root, name) for name in schema.TABLES}
    assert repaired(root) == [], story
    assert {name: newest_version(root, name) for name in schema.TABLES} == versions, story
    if at_length:
        again = doctor.examine(str(root), repair=True)
        assert again.mended == [], story
        assert not {f.check for f in again.findings if f.severity == "wrong"} & {"files", "opens", "keys"}, story
        try:
            maintenance.maintain(lk)
        except (OSError, ValueError) as error:
            raise AssertionError(story) from error
    shutil.rmtree(root)
    counts = {
        "lakes": 1,
        "damages": len(kinds),
        "rows lost": len(gone),
        "named": len(named),
        "lakes with a loss": bool(gone),
    }
    return Counter(kinds) + Counter(counts)


def repaired(root: Path) -> list[str]:
    lk = Lake(str(root))
    with leader_lock.leader(lk):
        return repair.repair(lk)


def set_aside_rows(root: Path) -> int:
    return sum(aside.missing for _, aside in set_aside.lists(root))


def new_labels(lk: OpenLake) -> list[str]:
    return [str(event) for event in lk.scan("labels", ["event_id"])["event_id"].to_pylist()]


def trials(whole: Path, tmp_path: Path, seed: int, damages: int) -> None:
    """Damages lakes until there were so many damages."""
    sound = stored(whole)
    counts: Counter[str] = Counter()
    while counts["damages"] < damages:
        # Of a lake that is recorded only in part, every file is read in a process of its own.
        source = whole if seed % 5 == 0 else whole.with_name("recorded")
        try:
            counts += damaged_and_repaired(source, tmp_path / f"{seed}.lake", seed, sound)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error
        seed += 1
    print(f"damage at random: {dict(counts)}")  # noqa: T201


def test_a_lake_damaged_at_random_keeps_every_intact_row(whole: Path, tmp_path: Path) -> None:
    trials(whole, tmp_path, 0, 40)


@pytest.mark.soak
def test_two_thousand_damages_at_random(whole: Path, tmp_path: Path) -> None:
    trials(whole, tmp_path, int(os.environ.get("LAKELOOP_SEED", "1000")), 2_000)
