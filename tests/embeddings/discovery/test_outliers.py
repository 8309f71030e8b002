"""What is far from everything comes first; a copy beside it hides nothing."""

import numpy as np
import pytest

from embeddings.discovery.outliers import METHODS, outliers
from lake import slices
from lake.errors import BadInput
from lake.storage.store import literals
from tests.conftest import MakeLake
from tests.embeddings.islands import islands, lake_of, unit
from tests.lake.prediction_rows import image


def names(rows) -> list[str]:
    return rows["image_id"].to_pylist()


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_odd_image_is_first(make_lake: MakeLake, method) -> None:
    points = islands([30, 20])
    points[17] = np.eye(8)[5]
    rows = outliers(lake_of(make_lake, points), method=method, limit=3)
    assert names(rows)[0] == image(17)
    first, second = rows["score"].to_pylist()[:2]
    assert first > 5 * second
    assert rows["label"].to_pylist()[0] == "b"  # the 17th in turn
    if method == "knn":  # it is at a right angle to all others, give or take their spread
        assert first == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_both_images_of_an_odd_pair_are_found(make_lake: MakeLake, method) -> None:
    points = islands([30, 20])
    points[3] = points[40] = np.eye(8)[5]
    lk = lake_of(make_lake, points)
    rows = outliers(lk, method=method, limit=2)
    assert set(names(rows)) == {image(3), image(40)}
    assert rows["distance"].to_pylist() == pytest.approx([0, 0], abs=1e-6)
    assert rows["nearest"].to_pylist() == names(rows)[::-1]
    # With one neighbour only they are each other's like: k is what sees past a copy.
    assert not {image(3), image(40)} & set(names(outliers(lk, method="knn", k=1, limit=2)))


def test_density_finds_an_odd_image_beside_a_tight_crowd(make_lake: MakeLake) -> None:
    rng = np.random.default_rng(0)
    loose = np.eye(8)[0] + rng.normal(0, 0.25, (40, 8))
    tight = np.eye(8)[1] + rng.normal(0, 0.005, (40, 8))
    tight[0] = np.eye(8)[1] + 0.08 * np.eye(8)[2]  # nearer to its crowd than the loose ones to each other
    lk = lake_of(make_lake, unit(np.concatenate([loose, tight])))
    assert names(outliers(lk, method="density"))[0] == image(40)
    assert image(40) not in names(outliers(lk, method="knn", limit=20))


def test_novel_images_are_far_from_the_slice(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([30, 20, 10]))
    slices.create(lk, "training", where=f"image_id IN ({literals([image(i) for i in range(50)])})")
    rows = outliers(lk, against="training", limit=60)
    assert set(names(rows)[:10]) == {image(i) for i in range(50, 60)}
    assert set(rows["nearest"].to_pylist()) <= {image(i) for i in range(50)}
    # Members are compared with the others of the slice, never with themselves.
    assert min(rows["distance"].to_pylist()) > 1e-6
    only = outliers(lk, against="training@1", where="label = 'a'", limit=60)
    assert set(names(only)) == {image(i) for i in range(0, 60, 2)}


def test_per_class_finds_an_image_unlike_its_predicted_class(make_lake: MakeLake) -> None:
    points = islands([40, 40])  # answered a and b in turn
    points[1::2] = np.roll(points[1::2], 3, axis=1)  # all that is answered b lies elsewhere
    points[7] = points[6]  # answered b, looks like an a
    lk = lake_of(make_lake, unit(points))
    rows = outliers(lk, per="class", limit=80)
    assert names(rows)[0] == image(7)
    assert rows["score"].to_pylist()[0] > 10
    assert np.median(rows["score"].to_pylist()) == pytest.approx(1, abs=0.2)
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


def test_bad_arguments_are_refused(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([5]))
    for reason, options in (
        ("at least 1", {"k": 0}),
        ("at least 1", {"limit": 0}),
        ("must be one of knn, density", {"method": "iforest"}),
        ("must be class", {"per": "model"}),
        ("not both", {"per": "class", "against": "x"}),
        ("no slice", {"against": "x"}),
        ("colour", {"where": "colour = 1"}),
    ):
        with pytest.raises(BadInput, match=reason):
            outliers(lk, **options)
