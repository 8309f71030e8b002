"""A search in the lake: every mark is safe before the next page, and whoever resumes it sees what its maker saw."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pytest

from embeddings.backfill.vector_columns import store_vectors
from embeddings.clusters.drilldown import cluster
from embeddings.embedders.embedder import bind, record_of
from embeddings.search import saved_searches
from lake import open_lake, slices
from lake.errors import BadInput
from lake.open_lake import OpenLake
from search_app.cli import main
from tests.conftest import MakeLake
from tests.embeddings.colour import Random
from tests.embeddings.search.test_active_search import kinds
from tests.lake.prediction_rows import add, image, label

COUNT, RARE = 400, 16
MOMENT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def hay(make_lake: MakeLake) -> tuple[OpenLake, set[str]]:
    """A lake of 400 images, and the ids of the 16 of a rare kind, which are labelled so."""
    return with_rare_kind(make_lake("hay", embedders=["random"]))


def with_rare_kind(lk: OpenLake) -> tuple[OpenLake, set[str]]:
    vectors, kind = kinds(COUNT, RARE, seed=1)
    # Random's vectors have 8 numbers: the rare kind must still stand apart.
    vectors = np.concatenate([vectors[:, :7], kind[:, None] * 0.6], axis=1)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    rows = [{"image_id": image(i), "label": "odd" if kind[i] else "usual"} for i in range(COUNT)]
    add(lk, rows + rows[::7])
    bind(lk, record_of(lk, None), Random())
    store_vectors(lk, "emb_random", {image(i): vectors[i] for i in range(COUNT)})
    label(lk, *((image(i), "odd" if kind[i] else "usual", MOMENT) for i in range(COUNT)))
    return lk, {image(i) for i in np.flatnonzero(kind)}


def turn(search: saved_searches.SavedSearch, kind: set[str]) -> None:
    page = search.page()
    search.mark([i for i in page if i in kind], [i for i in page if i not in kind])


def test_a_kind_is_found_and_becomes_a_slice(hay: tuple[OpenLake, set[str]]) -> None:
    lk, kind = hay
    search = saved_searches.start(lk, examples=[min(kind)], name="odd ones")
    while len(search.positives()) < RARE:
        turn(search, kind)
    assert set(search.positives()) == kind
    assert search.positives()[0] == min(kind)
    progress = search.progress()
    assert progress.found == RARE
    assert progress.looked == 24 * progress.pages < COUNT / 2
    assert slices.create(lk, "odd", ids=search.positives()).size == RARE


def test_a_resumed_search_is_the_same(hay: tuple[OpenLake, set[str]]) -> None:
    lk, kind = hay
    search = saved_searches.start(lk, examples=[min(kind)])
    for _ in range(2):
        turn(search, kind)
    again = saved_searches.resume(open_lake.open(lk.uri), search.id)
    assert again.page() == search.page()
    assert set(again.positives()) == set(search.positives())
    assert again.progress() == search.progress()
    listed = saved_searches.list(lk)
    assert [(s.id, s.found, s.looked) for s in listed] == [(search.id, len(search.positives()), 48)]


def test_marks_are_undone_page_by_page(hay: tuple[OpenLake, set[str]]) -> None:
    lk, kind = hay
    search = saved_searches.start(lk, examples=[min(kind)])
    pages = []
    for _ in range(3):
        pages.append(search.page())
        turn(search, kind)
    for page in reversed(pages):
        assert search.undo()
        assert search.page() == page
    assert not search.undo(), "the example stays"
    assert search.positives() == [min(kind)]
    assert saved_searches.resume(lk, search.id).page() == pages[0]


def test_a_whole_cluster_is_accepted_or_refused_without_looking(hay: tuple[OpenLake, set[str]]) -> None:
    lk, kind = hay
    tree = cluster(lk, method="kmeans", k=3)
    search = saved_searches.start(lk, examples=[min(kind)])
    node = f"{tree.tree}/0"
    inside = set(lk.look_up("cluster_members", ["image_id"], "id", [node])["image_id"].to_pylist())
    assert search.refuse(node) == len(inside - {min(kind)})
    assert not inside & set(search.page(COUNT))
    assert search.progress().looked == 0
    assert search.undo()
    assert search.accept(node) == len(inside - {min(kind)})
    assert inside <= set(search.positives())
    with pytest.raises(BadInput, match="no node 'x/9'"):
        search.accept("x/9")


def test_a_search_keeps_to_its_filter_or_node(hay: tuple[OpenLake, set[str]]) -> None:
    lk, kind = hay
    example = min(kind)
    search = saved_searches.start(lk, examples=[example], where="label = 'usual'")
    assert set(search.page(COUNT)).isdisjoint(kind)
    assert len(search.page(COUNT)) == COUNT - RARE
    tree = cluster(lk, method="kmeans", k=4)
    inside = set(lk.look_up("cluster_members", ["image_id"], "id", [f"{tree.tree}/1"])["image_id"].to_pylist())
    assert set(saved_searches.start(lk, examples=[example], node=f"{tree.tree}/1").page(COUNT)) == inside - {example}


def test_a_prediction_id_names_its_image(hay: tuple[OpenLake, set[str]]) -> None:
    lk, kind = hay
    rows = lk.look_up("samples", ["prediction_id"], "image_id", [min(kind)])
    search = saved_searches.start(lk, examples=[str(rows["prediction_id"][0])])
    assert search.positives() == [min(kind)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"examples": []}, "at least one example"),
        ({"examples": ["0" * 64]}, "the lake has no image_id 0000"),
        ({"examples": [image(0)], "where": "label = 'a'", "node": "x/0"}, "not both"),
        ({"examples": [image(0)], "node": "x/0"}, "no node 'x/0'"),
        ({"examples": [image(0)], "where": "nothing = 1"}, "nothing"),
    ],
)
def test_a_refused_search_writes_nothing(
    hay: tuple[OpenLake, set[str]], options: dict[str, object], reason: str
) -> None:
    lk, _ = hay
    with pytest.raises(BadInput, match=reason):
        saved_searches.start(lk, **options)  # type: ignore[arg-type]
    assert saved_searches.list(lk) == []
    assert lk.dataset("marks").count_rows() == 0


def test_an_example_without_a_vector_is_refused(hay: tuple[OpenLake, set[str]]) -> None:
    lk, _ = hay
    add(lk, [{"image_id": image(COUNT + 1), "label": "new"}])
    with pytest.raises(BadInput, match="no random vector"):
        saved_searches.start(lk, examples=[image(COUNT + 1)])
    with pytest.raises(BadInput, match="no search 'none'"):
        saved_searches.resume(lk, "none")


def test_an_unknown_image_cannot_be_marked(hay: tuple[OpenLake, set[str]]) -> None:
    lk, kind = hay
    search = saved_searches.start(lk, examples=[min(kind)])
    with pytest.raises(BadInput, match="is not in this search"):
        search.mark(["0" * 64])
    with pytest.raises(BadInput, match="yes and no"):
        search.mark([image(3)], [image(3)])
    assert len(saved_searches.resume(lk, search.id).positives()) == 1


def test_new_images_are_included_when_the_search_is_resumed(hay: tuple[OpenLake, set[str]]) -> None:
    lk, kind = hay
    search = saved_searches.start(lk, examples=[min(kind)])
    turn(search, kind)
    add(lk, [{"image_id": image(COUNT + 5), "label": "odd"}])
    like = lk.look_up("samples", ["emb_random"], "image_id", [min(kind)])["emb_random"][0].as_py()
    store_vectors(lk, "emb_random", {image(COUNT + 5): np.asarray(like, np.float32)})
    assert image(COUNT + 5) in saved_searches.resume(lk, search.id).page()


def test_the_command_isolates_with_an_oracle_and_page_by_page(
    hay: tuple[OpenLake, set[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lk, kind = hay

    def run(*words: str) -> dict[str, object]:
        assert main.main(["isolate", "--lake", lk.uri, "--json", *words]) == 0
        facts: dict[str, object] = json.loads(capsys.readouterr().out)
        return facts

    report = run("--like", min(kind), "--oracle-column", "true_label", "--until", "1")
    assert report["found"] == report["of"] == RARE
    assert report["share"] < 0.5  # type: ignore[operator]
    begun = run("--like", min(kind))
    page = begun["page"]
    assert isinstance(page, list)
    marks = [word for i in page if i in kind for word in ("--yes", i)]
    after = run("--search", str(begun["search"]), *marks, "--rest-no")
    assert set(after["found"]) == {min(kind)} | {i for i in page if i in kind}  # type: ignore[call-overload]
    assert run("--search", str(begun["search"]), "--undo")["page"] == page
    assert main.main(["isolate", "--lake", lk.uri]) == 2
    assert "give --like ID" in capsys.readouterr().err
