"""Vectors reach their rows by either way of writing them, and nothing else about a row changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from embeddings.backfill import vector_columns
from embeddings.backfill.vector_columns import store_vectors
from embeddings.embedders.embedder import bind
from lake import open_lake
from lake.open_lake import OpenLake
from lake.storage.lance_files import columns
from lake.storage.missing_vectors import MissingVectors
from tests.conftest import MakeLake
from tests.embeddings.colour import MeanColour, Random
from tests.lake.prediction_rows import add, image


@pytest.fixture
def lk(make_lake: MakeLake) -> OpenLake:
    """Forty answers in one fragment and forty in four; two embedders, one of which is through."""
    lk = make_lake(embedders=["mean-colour", "random"], columns={"camera": "int"})
    for record, embedder in zip(lk.embedders(), (MeanColour(), Random()), strict=True):
        bind(lk, record, embedder)
    boxes = [{"label": "x", "score": 0.5, "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0}]
    add(lk, [{"camera": i, "boxes": boxes, "label": str(i)} for i in range(40)])
    for start in range(40, 80, 10):
        add(lk, [{"camera": i, "label": str(i)} for i in range(start, start + 10)])
    store_vectors(lk, "emb_random", {image(i): np.full(8, i, np.float32) for i in range(80)})
    return lk


def vector(i: int) -> np.ndarray:
    return np.array([i, 1, 0], np.float32)


def rows(lk: OpenLake) -> dict[str, dict[str, object]]:
    rows = lk.dataset("samples").to_table().to_pylist()
    assert len(rows) == len({row["prediction_id"] for row in rows}) == 80
    return {row["image_id"]: row for row in rows}


@pytest.mark.parametrize("waste", [0, 100, 4 << 20])
def test_only_the_vectors_change(lk: OpenLake, monkeypatch: pytest.MonkeyPatch, waste: int) -> None:
    """`waste` 0: rows move wherever most of a fragment waits on; 4 MB: never in tables as small as this."""
    monkeypatch.setattr(vector_columns, "WASTE_BYTES", waste)
    before = rows(lk)
    fragments = len(lk.dataset("samples").get_fragments())
    missing = MissingVectors(lk, "emb_mean_colour")
    for start, stop in ((0, 3), (3, 5), (5, 45), (45, 46), (46, 80)):
        assert store_vectors(lk, "emb_mean_colour", {image(i): vector(i) for i in range(start, stop)}, missing) == (
            stop - start
        )
        after = rows(lk)
        for i in range(80):
            expected = before[image(i)] | {"emb_mean_colour": list(vector(i)) if i < stop else None}
            assert after[image(i)] == expected
    assert (len(lk.dataset("samples").get_fragments()) > fragments) == (waste < 4 << 20)
    assert not len(missing.rows().state)
    assert lk.known("samples", "image_id", [image(1), image(79)]) == {image(1), image(79)}


def test_a_row_has_its_vector_already_and_keeps_it(lk: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_columns, "WASTE_BYTES", 0)
    store_vectors(lk, "emb_mean_colour", {image(0): vector(0)})
    assert store_vectors(lk, "emb_mean_colour", {image(0): vector(7), image("none"): vector(1)}) == 0
    assert rows(lk)[image(0)]["emb_mean_colour"] == [0, 1, 0]


def _appends(lk: OpenLake) -> None:
    add(lk, [{"prediction_id": "new", "image_id": image("new")}])


def _deletes(lk: OpenLake) -> None:
    lk.delete("samples", f"image_id = '{image(2)}'")


def _changes(lk: OpenLake) -> None:
    lk.dataset("samples").update({"metadata": "'{}'"}, where=f"image_id = '{image(1)}'")


def _compacts(lk: OpenLake) -> None:
    before = len(lk.dataset("samples").get_fragments())
    lk.dataset("samples").optimize.compact_files()
    assert len(lk.dataset("samples").get_fragments()) < before


def _embeds_others(lk: OpenLake) -> None:
    store_vectors(lk, "emb_mean_colour", {image(9): vector(9)})


def _embeds_the_same(lk: OpenLake) -> None:
    store_vectors(lk, "emb_mean_colour", {image(1): vector(1)})


@pytest.mark.parametrize("waste", [0, 4 << 20])
@pytest.mark.parametrize("deed", [_appends, _deletes, _changes, _compacts, _embeds_others, _embeds_the_same])
def test_a_concurrent_commit_is_preserved(
    lk: OpenLake, monkeypatch: pytest.MonkeyPatch, waste: int, deed: Callable[[OpenLake], None]
) -> None:
    """Between our reading and our commit somebody else does something to the same fragments."""
    monkeypatch.setattr(vector_columns, "WASTE_BYTES", waste)
    before = {row["image_id"]: row for row in lk.dataset("samples").to_table().to_pylist()}
    commit, left = columns._commit, iter([deed])

    def second(*arguments: Any) -> None:
        if first := next(left, None):
            first(open_lake.open(lk.uri))
        commit(*arguments)

    monkeypatch.setattr(columns, "_commit", second)
    store_vectors(lk, "emb_mean_colour", {image(i): vector(i) for i in range(4)})
    rows = lk.dataset("samples").to_table().to_pylist()
    assert len(rows) == 80 + (deed is _appends) - (deed is _deletes)
    for i in range(80):
        expected = dict(before[image(i)])
        if i < 4 or (i == 9 and deed is _embeds_others):
            expected["emb_mean_colour"] = list(vector(i))
        if i == 1 and deed is _changes:
            expected["metadata"] = "{}"
        assert [row for row in rows if row["image_id"] == image(i)] == (
            [] if i == 2 and deed is _deletes else [expected]
        )


@pytest.mark.parametrize("waste", [0, 4 << 20])
def test_concurrent_writers_lose_nothing(lk: OpenLake, monkeypatch: pytest.MonkeyPatch, waste: int) -> None:
    monkeypatch.setattr(vector_columns, "WASTE_BYTES", waste)
    failures: list[BaseException] = []

    def busy(deed: object) -> None:
        mine = open_lake.open(lk.uri)
        try:
            for i in range(6):
                deed(mine, i)  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    def adds(mine: OpenLake, i: int) -> None:
        add(mine, [{"prediction_id": f"new-{i}-{j}", "image_id": image(f"new {i} {j}")} for j in range(5)])

    def changes(mine: OpenLake, i: int) -> None:
        mine.commit(
            "samples",
            lambda: mine.dataset("samples").update({"metadata": f"'{i}'"}, where=f"image_id = '{image(i * 7)}'"),
        )

    def deletes(mine: OpenLake, i: int) -> None:
        mine.delete("samples", f"image_id = '{image(79 - i)}'")

    def compacts(mine: OpenLake, i: int) -> None:
        mine.commit("samples", lambda: mine.dataset("samples").optimize.compact_files())

    def embeds(mine: OpenLake, i: int) -> None:
        wanted = range(12 * i, 12 * i + 12)
        store_vectors(mine, "emb_mean_colour", {image(j): vector(j) for j in wanted})

    threads = [threading.Thread(target=busy, args=(deed,)) for deed in (adds, changes, deletes, compacts, embeds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    rows = lk.dataset("samples").to_table().to_pylist()
    assert sorted(row["image_id"] for row in rows) == sorted(
        [image(i) for i in range(74)] + [image(f"new {i} {j}") for i in range(6) for j in range(5)]
    )
    by_image = {row["image_id"]: row for row in rows}
    for i in range(74):
        row = by_image[image(i)]
        assert row["emb_mean_colour"] == (list(vector(i)) if i < 72 else None)
        assert row["emb_random"] == [i] * 8
        assert (row["camera"], row["label"]) == (i, str(i))
        assert row["metadata"] == (str(i // 7) if i % 7 == 0 and i < 42 else None)
