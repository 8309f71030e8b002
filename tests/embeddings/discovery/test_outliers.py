"""What is far from everything comes first; a copy beside it hides nothing."""

import numpy as np
import pytest

from embeddings.discovery.outliers import METHODS, outliers
from lake import slices
from lake.errors import BadInput
from lake.storage.store import literals
from tests.conftest import MakeLake
from tests.embeddings.islands import islands, lake_of, unit
from tests.lake.answers import image


def names(found) -> list[str]:
    return found["image_id"].to_pylist()


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_odd_image_is_first(make_lake: MakeLake, method) -> None:
    points = islands([30, 20])
    points[17] = np.eye(8)[5]
    found = outliers(lake_of(make_lake, points), method=method, limit=3)
    assert names(found)[0] == image(17)
    first, second = found["score"].to_pylist()[:2]
    assert first > 5 * second
    assert found["label"].to_pylist()[0] == "b"  # the 17th in turn
    if method == "knn":  # it is at a right angle to all others, give or take their spread
        assert first == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_a_pair_of_odd_images_hides_neither(make_lake: MakeLake, method) -> None:
    points = islands([30, 20])
    points[3] = points[40] = np.eye(8)[5]
    lk = lake_of(make_lake, points)
    found = outliers(lk, method=method, limit=2)
    assert set(names(found)) == {image(3), image(40)}
    assert found["distance"].to_pylist() == pytest.approx([0, 0], abs=1e-6)
    assert found["nearest"].to_pylist() == names(found)[::-1]
    # With one neighbour only they are each other's like: k is what sees past a copy.
    assert not {image(3), image(40)} & set(names(outliers(lk, method="knn", k=1, limit=2)))


def test_density_finds_what_is_odd_beside_a_tight_crowd(make_lake: MakeLake) -> None:
    rng = np.random.default_rng(0)
    loose = np.eye(8)[0] + rng.normal(0, 0.25, (40, 8))
    tight = np.eye(8)[1] + rng.normal(0, 0.005, (40, 8))
    tight[0] = np.eye(8)[1] + 0.08 * np.eye(8)[2]  # nearer to its crowd than the loose ones to each other
    lk = lake_of(make_lake, unit(np.concatenate([loose, tight])))
    assert names(outliers(lk, method="density"))[0] == image(40)
    assert image(40) not in names(outliers(lk, method="knn", limit=20))


def test_novelty_is_far_from_the_slice_and_nothing_else(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([30, 20, 10]))
    slices.create(lk, "training", where=f"image_id IN ({literals([image(i) for i in range(50)])})")
    found = outliers(lk, against="training", limit=60)
    assert set(names(found)[:10]) == {image(i) for i in range(50, 60)}
    assert set(found["nearest"].to_pylist()) <= {image(i) for i in range(50)}
    # Members are compared with the others of the slice, never with themselves.
    assert min(found["distance"].to_pylist()) > 1e-6
    only = outliers(lk, against="training@1", where="label = 'a'", limit=60)
    assert set(names(only)) == {image(i) for i in range(0, 60, 2)}


def test_per_class_finds_what_is_answered_unlike_its_looks(make_lake: MakeLake) -> None:
    points = islands([40, 40])  # answered a and b in turn
    points[1::2] = np.roll(points[1::2], 3, axis=1)  # all that is answered b lies elsewhere
    points[7] = points[6]  # answered b, looks like an a
    lk = lake_of(make_lake, unit(points))
    found = outliers(lk, per="class", limit=80)
    assert names(found)[0] == image(7)
    assert found["score"].to_pylist()[0] > 10
    assert np.median(found["score"].to_pylist()) == pytest.approx(1, abs=0.2)
    assert image(7) not in names(outliers(lk, limit=5))


def test_ties_few_images_and_copies(make_lake: MakeLake) -> None:
    same = lake_of(make_lake, unit(np.ones((4, 8))), "same")
    for method in METHODS:
        assert names(outliers(same, method=method)) == sorted(image(i) for i in range(4))
    two = lake_of(make_lake, islands([2]), "two")
    assert len(names(outliers(two))) == 2
    with pytest.raises(BadInput, match="outliers need others"):
        outliers(lake_of(make_lake, islands([1]), "one"))
    with pytest.raises(BadInput, match="outliers need others"):
        outliers(same, where="label = 'c'")


def test_what_cannot_be_ranked_says_why(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([5]))
    for words, how in (
        ("at least 1", {"k": 0}),
        ("at least 1", {"limit": 0}),
        ("none of knn, density", {"method": "iforest"}),
        ("must be class", {"per": "model"}),
        ("not both", {"per": "class", "against": "x"}),
        ("no slice", {"against": "x"}),
        ("colour", {"where": "colour = 1"}),
    ):
        with pytest.raises(BadInput, match=words):
            outliers(lk, **how)
