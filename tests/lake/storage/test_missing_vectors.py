"""What lacks a vector is what a plain scan says, whatever was done to the table, and costs no reading of vectors."""

from __future__ import annotations

import itertools
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.backfill.vector_columns import store_vectors
from lake.analytics import summary
from lake.open_lake import OpenLake
from lake.storage import schema
from lake.storage.lance_files import nulls
from lake.storage.lance_files.nulls import PageNulls
from lake.storage.missing_vectors import UNREADABLE, WAITING, WITHOUT_BYTES, Gaps, MissingVectors
from lake.storage.store import now
from tests.conftest import MakeLake

IMAGES = [f"{i:064x}" for i in range(6)]
_lakes = itertools.count()


def bound(lk: OpenLake, dim: int, name: str = "random") -> str:
    """Gives the lake an embedder of this dim; returns its column."""
    record = replace(lk.register_embedder(name), dim=dim, weights_sha256="d" * 64)
    lk.bind_embedder(record)
    return record.column


def answer(lk: OpenLake, *images: int, status: str | None = None) -> None:
    moment = now()
    rows = [
        {"prediction_id": str(uuid.uuid4()), "image_id": IMAGES[i], "ingested_at": moment, "image_status": status}
        for i in images
    ]
    lk.insert("samples", pa.Table.from_pylist(rows, schema=schema.SAMPLES.arrow()))


def store(lk: OpenLake, *images: int) -> None:
    """Puts the images' bytes into the lake."""
    form = schema.IMAGES.arrow()
    columns: dict[str, Any] = {f.name: pa.nulls(len(images), f.type) for f in form if f.name != "data"}
    columns["image_id"] = pa.array([IMAGES[i] for i in images])
    columns["ingested_at"] = pa.array([now()] * len(images), schema.UTC)
    columns["data"] = lance.blob_array([b"bytes"] * len(images))
    lk.insert("images", pa.table(columns, schema=form))


def vectors(lk: OpenLake, column: str, *images: int) -> None:
    dim = lk.dataset("samples").schema.field(column).type.list_size
    store_vectors(lk, column, {IMAGES[i]: np.random.default_rng(i).normal(size=dim).astype(np.float32) for i in images})


def compact(lk: OpenLake) -> None:
    lk.commit("samples", lambda: lk.dataset("samples").optimize.compact_files())


def facts(gaps: Gaps) -> list[tuple[str, int]]:
    return sorted(zip(gaps.image_id.to_pylist(), gaps.state.tolist(), strict=True))


def truth(lk: OpenLake, column: str) -> list[tuple[str, int]]:
    """(image, state) of each row without a vector, by reading everything."""
    rows = lk.scan("samples", ["image_id", "image_status", column]).to_pylist()
    embedded = {row["image_id"] for row in rows if row[column] is not None}
    embedded |= set(lk.scan("images", ["image_id"])["image_id"].to_pylist())
    return sorted(
        (
            row["image_id"],
            UNREADABLE if row["image_status"] else WAITING if row["image_id"] in embedded else WITHOUT_BYTES,
        )
        for row in rows
        if row[column] is None
    )


numbers = st.lists(st.sampled_from(range(6)), min_size=1, max_size=4, unique=True)
actions: st.SearchStrategy[Any] = st.one_of(
    st.tuples(st.sampled_from(["answer", "store", "vectors", "other vectors", "broken answer"]), numbers),
    st.tuples(st.sampled_from(["delete", "status", "drop bytes"]), st.sampled_from(range(6)).map(lambda i: [i])),
    st.tuples(st.sampled_from(["compact", "index"]), st.just([])),
)


@settings(max_examples=8)
@given(st.lists(actions, min_size=4, max_size=10), st.sampled_from([3, 300]))
def test_it_finds_the_same_rows_as_a_plain_scan(
    make_lake: MakeLake, done: list[tuple[str, list[int]]], dim: int
) -> None:
    """Asked anew, it agrees in everything. Asked again and again it agrees on the rows, and gives none up too early.

    It may hope too long: bytes that were dropped are noticed when they are wanted.
    """
    lk = make_lake(f"lake{next(_lakes)}")
    column, other = bound(lk, dim), bound(lk, 2, "resnet18")
    answer(lk, 0, 1, 2, 3)
    store(lk, 0, 1)
    patient = MissingVectors(lk, column)
    for deed, images in done:
        named = f"image_id = '{IMAGES[images[0]]}'" if images else ""
        match deed:
            case "answer":
                answer(lk, *images)
            case "broken answer":
                answer(lk, *images, status="it is broken")
            case "store":
                store(lk, *images)
            case "vectors":
                vectors(lk, column, *images)
            case "other vectors":
                vectors(lk, other, *images)
            case "delete":
                lk.delete("samples", named)
            case "drop bytes":
                lk.delete("images", named)
            case "status":
                lk.dataset("samples").update({"image_status": "'it broke'"}, where=named)
            case "compact":
                compact(lk)
            case "index":
                lk.index("samples")
        expected = truth(lk, column)
        assert facts(MissingVectors(lk, column).look()) == expected
        rows = facts(patient.look())
        assert [image for image, _ in rows] == [image for image, _ in expected]
        hopeful = {image for image, state in expected if state == WAITING}
        assert not hopeful & {image for image, state in rows if state == WITHOUT_BYTES}
        assert [f for f in rows if f[1] == UNREADABLE] == [f for f in expected if f[1] == UNREADABLE]
        assert facts(patient.rows()) == rows
    shutil.rmtree(lk.uri)


def test_addresses_are_those_of_the_version_and_ascend(lk: OpenLake) -> None:
    column = bound(lk, 3)
    answer(lk, 0, 1)
    answer(lk, 2, 3)
    vectors(lk, column, 0)
    gaps = MissingVectors(lk, column).look()
    rows = gaps.dataset.to_table(["image_id"], filter=f"{column} is null", with_row_id=True)
    assert dict(zip(gaps.address.tolist(), gaps.image_id.to_pylist(), strict=True)) == dict(
        zip(rows["_rowid"].to_pylist(), rows["image_id"].to_pylist(), strict=True)
    )
    assert (np.diff(gaps.address.astype(np.int64)) > 0).all()


def test_an_unchanged_lake_gives_the_same_object_again(lk: OpenLake) -> None:
    column = bound(lk, 3)
    answer(lk, 0)
    missing = MissingVectors(lk, column)
    assert missing.look() is missing.look()


def test_a_lake_whose_embedder_never_ran_lacks_every_vector(lk: OpenLake) -> None:
    answer(lk, 0, 1)
    store(lk, 0)
    assert facts(MissingVectors(lk, "emb_resnet18").look()) == [(IMAGES[0], WAITING), (IMAGES[1], WITHOUT_BYTES)]


def test_a_column_that_is_created_again_under_its_name_is_empty(lk: OpenLake) -> None:
    column = bound(lk, 3)
    answer(lk, 0)
    vectors(lk, column, 0)
    missing = MissingVectors(lk, column)
    assert facts(missing.look()) == []
    lk.dataset("samples").drop_columns([column])
    lk.add_column("samples", pa.field(column, schema.vector_type(3)))
    assert len(missing.look().state) == 1


def test_existing_vectors_are_not_read(lk: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that came in one by one, were embedded and merged with others that were not."""
    column = bound(lk, 300)
    for i in range(4):
        answer(lk, i)
    vectors(lk, column, 0, 1, 2, 3)
    compact(lk)
    answer(lk, 4, 5)
    monkeypatch.setattr(nulls, "_read", lambda *_: pytest.fail("vectors were read"))
    assert [image for image, _ in facts(MissingVectors(lk, column).look())] == IMAGES[4:]


def test_progress_counts_each_image_once(lk: OpenLake) -> None:
    """Of four images one is embedded, one waits, one has no bytes, and one cannot be read, in one of its two rows."""
    column = bound(lk, 3)
    answer(lk, 0, 1, 2, 3)
    answer(lk, 3, status="it is broken")
    store(lk, 0, 1)
    vectors(lk, column, 0)
    (rows,) = summary.embedding_progress(lk, lk.embedders())
    counts = {name: rows[name] for name in ("embedded", "missing", "unreadable", "without_bytes")}
    assert counts == {"embedded": 1, "missing": 1, "unreadable": 1, "without_bytes": 1}


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([], []),
        ([PageNulls("none", 6), PageNulls("some", 4)], [(0, 6, "none"), (6, 10, "some")]),
        ([PageNulls("all", None)], [(0, 10, "all")]),
        ([PageNulls("none", 2), PageNulls("all", None), PageNulls("all", None), PageNulls("none", 3)],
         [(0, 2, "none"), (7, 10, "none"), (2, 7, "all")]),
        ([PageNulls("none", 2), PageNulls("all", None), PageNulls("some", 3), PageNulls("all", None)],
         [(0, 2, "none"), (2, 10, "some")]),
        ([PageNulls("none", 20)], [(0, 10, "some")]),
        ([PageNulls("none", 4), PageNulls("none", 4)], [(0, 10, "some")]),
        ([PageNulls("none", 10), PageNulls("all", None)], [(0, 10, "some")]),
    ],
)  # fmt: skip
def test_lengths_are_counted_from_both_ends(pages: list[PageNulls], expected: list[Any]) -> None:
    """A page of nulls alone names no length. What does not add up to ten rows is read."""
    assert list(nulls.regions(pages, 10 if pages else 0)) == expected


def test_a_footer_with_an_unknown_description_is_not_trusted(lk: OpenLake, tmp_path: Path) -> None:
    class Described:
        encoding = "PageLayout { layout: Some(NewLayout { layers: [RepdefAllValidItem, RepdefNewItem] }) }"
        buffers = ()

    assert nulls.page(Described) == PageNulls("some", None)
