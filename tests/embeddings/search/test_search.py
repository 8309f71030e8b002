"""The k most similar distinct images, exactly: beside numpy on the same vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings.backfill.backfill import backfill
from embeddings.backfill.vector_columns import store_vectors
from embeddings.embedders.embedder import bind, record_of
from embeddings.search.search import search
from lake import ids, open_lake
from lake.errors import BadInput
from lake.ingest import ingest
from lake.open_lake import OpenLake
from tests.conftest import MakeLake
from tests.embeddings.colour import MeanColour, Random
from tests.lake.prediction_rows import add, image
from tests.pictures import encoded, flat

IMAGES, DIM = 60, 8
LANCE_FILTERS = [None, "label = 'a'", "confidence < 0.5", "label = 'a' OR n IS NULL", "NOT (n > 2)", "label = 'nobody'"]
DUCKDB_FILTERS = [
    "label LIKE 'a%'",
    "n + 1 = 3",
    "len(scores) > 0",
    "confidence < n",
    "image_id = 'x' OR label LIKE 'x'",
]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[OpenLake, dict[str, np.ndarray]]:
    """60 images, 1 to 5 rows each in three commits, some without a vector yet; and image_id -> vector."""
    lk = open_lake.create(str(tmp_path_factory.mktemp("crowd") / "lake"), embedders=["random"], columns={"n": "int"})
    rng = np.random.default_rng(7)
    rows: list[dict[str, Any]] = []
    for i in range(IMAGES):
        for _ in range(rng.integers(1, 6)):
            rows.append({
                "image_id": image(i), "label": rng.choice(["a", "ab", "b"]), "confidence": rng.random(),
                "n": [None, 1, 2, 3][rng.choice(4)], "scores": [None, [{"label": "a", "score": 0.5}]][rng.choice(2)],
            })  # fmt: skip
    rng.shuffle(rows)
    for part in np.array_split(np.arange(len(rows)), 3):
        add(lk, [rows[i] for i in part])
    bind(lk, record_of(lk, None), Random())
    vectors = rng.normal(size=(IMAGES, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known = {image(i): vectors[i] for i in range(IMAGES)}
    store_vectors(lk, "emb_random", known)
    add(lk, [{"image_id": image("new"), "label": "a"}])
    return lk, known


def brute_force(
    lk: OpenLake, known: dict[str, np.ndarray], query: np.ndarray, k: int, where: str | None
) -> list[tuple[str, float]]:
    passing = lk.sql(f"SELECT DISTINCT image_id FROM samples WHERE {where or 'true'}")["image_id"].to_pylist()
    names = [name for name in passing if name in known]
    cosines = {name: float(known[name] @ query / np.linalg.norm(query)) for name in names}
    return sorted(cosines.items(), key=lambda pair: -pair[1])[:k]


@given(
    seed=st.integers(0, 2**16), k=st.integers(1, 80), where=st.sampled_from(LANCE_FILTERS + DUCKDB_FILTERS),
)  # fmt: skip
@settings(max_examples=60)
def test_search_equals_brute_force(
    crowd: tuple[OpenLake, dict[str, np.ndarray]], seed: int, k: int, where: str | None
) -> None:
    lk, known = crowd
    query = np.random.default_rng(seed).normal(size=DIM) * 10
    rows = search(lk, vector=query, k=k, where=where)
    expected = brute_force(lk, known, query, k, where)
    assert rows["image_id"].to_pylist() == [name for name, _ in expected]
    assert np.allclose(rows["similarity"].to_pylist(), [cosine for _, cosine in expected], atol=1e-5)


def test_an_image_is_found_by_its_id_as_by_its_vector(crowd: tuple[OpenLake, dict[str, np.ndarray]]) -> None:
    lk, known = crowd
    by_id, by_vector = search(lk, ids=[image(3)], k=9), search(lk, vector=known[image(3)], k=9)
    assert by_id.equals(by_vector)
    assert by_id["image_id"][0].as_py() == image(3)
    assert by_id["similarity"][0].as_py() == pytest.approx(1.0, abs=1e-6)
    prediction = by_id["prediction_id"][0].as_py()
    assert search(lk, ids=[prediction], k=9).equals(by_id)


def test_several_ids_are_averaged(crowd: tuple[OpenLake, dict[str, np.ndarray]]) -> None:
    lk, known = crowd
    mean = known[image(1)] + known[image(2)] + known[image(5)]
    together = search(lk, ids=[image(1), image(2), image(5)], k=5)
    assert together["image_id"].equals(search(lk, vector=mean, k=5)["image_id"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "exactly one of"),
        ({"vector": np.ones(8), "text": "x"}, "exactly one of"),
        ({"vector": np.ones(8), "k": 0}, "k is 0"),
        ({"vector": np.ones(7)}, r"shape \(7,\); random has dim 8"),
        ({"vector": np.zeros(8)}, "has no direction"),
        ({"vector": np.full(8, np.nan)}, "has no direction"),
        ({"vector": np.ones(8), "columns": ["nothing"]}, "no column 'nothing'; it has prediction_id"),
        ({"vector": np.ones(8), "columns": ["emb_random"]}, "no column"),
        ({"vector": np.ones(8), "where": "label"}, "not true or false"),
        ({"vector": np.ones(8), "embedder": "resnet18"}, r"has no embedder 'resnet18' \(it has random\)"),
        ({"ids": ["cat"]}, "is not an id"),
        ({"ids": [image("nobody")]}, "the lake has no image_id"),
        ({"ids": [image("new")]}, "has no random vector yet; run: lakeloop embed"),
        ({"text": "a cat", "model": Random()}, "embeds images only"),
        ({"image": "/nowhere.png", "model": Random()}, "No such file"),
        ({"image": b"text", "model": Random()}, "not an image"),
    ],
)
def test_bad_arguments_are_refused(crowd: tuple[OpenLake, dict[str, np.ndarray]], options: dict, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        search(crowd[0], **options)


def test_a_lake_without_vectors_is_refused(make_lake: MakeLake) -> None:
    with pytest.raises(BadInput, match="the lake has no random vectors yet"):
        search(make_lake("a", embedders=["random"]), vector=np.ones(8))
    with pytest.raises(BadInput, match="the lake has no embedder"):
        search(make_lake("b"), vector=np.ones(8))


def test_an_image_is_shown_with_its_newest_row_that_passes(make_lake: MakeLake) -> None:
    lk = make_lake(embedders=["random"])
    rows = [("old", 1), ("new", 3), ("mid", 2), ("never", None)]
    stamps = [None if d is None else np.datetime64(f"2024-05-0{d}").astype("datetime64[us]").item() for _, d in rows]
    add(lk, [{"image_id": image(0), "label": n, "timestamp": t} for (n, _), t in zip(rows, stamps, strict=True)])
    bind(lk, record_of(lk, None), Random())
    store_vectors(lk, "emb_random", {image(0): np.eye(8, dtype=np.float32)[0]})

    def label(where: str | None) -> list[str]:
        return list(search(lk, vector=np.ones(8), where=where)["label"].to_pylist())

    assert label(None) == ["new"]
    assert label("label <> 'new'") == ["mid"]
    assert label("label LIKE 'n%v%'") == ["never"]


def test_columns_and_types_are_fixed(crowd: tuple[OpenLake, dict[str, np.ndarray]]) -> None:
    usual = ["prediction_id", "image_id", "similarity", "label", "confidence", "source"]
    rows = search(crowd[0], vector=np.ones(8), k=3, columns=["n", "timestamp", "label"])
    assert rows.column_names == [*usual, "n", "timestamp"]
    assert rows.schema.field("similarity").type == pa.float64()
    nothing = search(crowd[0], vector=np.ones(8), where="false")
    assert (nothing.num_rows, nothing.column_names) == (0, usual)


@pytest.mark.usefixtures("installed")
def test_red_is_nearest_to_red(colours: OpenLake, tmp_path: Path) -> None:
    """cos((255, 0, 0), (255, 255, 0)) is 1 / sqrt(2)."""
    for name in ("red", "yellow", "blue"):
        (tmp_path / f"{name}.png").write_bytes(encoded(flat(name)))
    ingest.ingest(colours, tmp_path, workers=1)
    backfill(colours, record_of(colours, None), MeanColour(), workers=1)
    red = encoded(flat("#400000", 90, 70), "JPEG", quality=98)
    for example in (red, tmp_path / "red.png", str(tmp_path / "red.png")):
        rows = search(colours, image=example)
        assert [Path(s).stem for s in rows["source"].to_pylist()] == ["red", "yellow", "blue"]
        assert np.allclose(rows["similarity"].to_pylist(), [1, 2**-0.5, 0], atol=0.03)
    name = ids.image_id(encoded(flat("blue")))
    assert search(colours, ids=[name], k=1)["image_id"].to_pylist() == [name]


@pytest.mark.usefixtures("installed")
def test_a_zero_vector_is_refused(colours: OpenLake, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(encoded(flat("red")))
    ingest.ingest(colours, tmp_path, workers=1)
    backfill(colours, record_of(colours, None), MeanColour(), workers=1)
    with pytest.raises(BadInput, match="no finite vector, for this image"):
        search(colours, image=encoded(flat("black")))


def test_equally_similar_images_come_in_the_order_of_their_ids(make_lake: MakeLake) -> None:
    lk = make_lake("black", embedders=["random"])
    names = [image(f"black {n}") for n in range(70)]
    bind(lk, record_of(lk, None), Random())
    for part in np.array_split(np.random.default_rng(2).permutation(names), 3):
        add(lk, [{"image_id": name, "label": "a"} for name in part])
        store_vectors(lk, "emb_random", {name: np.eye(DIM, dtype=np.float32)[0] for name in part.tolist()})
    for k in (5, 30, 70):
        rows = search(lk, vector=np.eye(DIM)[0], k=k)
        assert rows["image_id"].to_pylist() == sorted(names)[:k]
        assert rows["similarity"].to_pylist() == pytest.approx([1.0] * k)
