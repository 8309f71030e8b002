"""Other cuts of a node are compared, and nothing is saved."""

import pytest

from embeddings.clusters.cuts import compare, sweep
from embeddings.clusters.drilldown import cluster
from lake.errors import BadInput
from tests.conftest import MakeLake
from tests.embeddings.islands import islands, lake_of


def test_a_sweep_shows_cliffs_and_saves_nothing(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([40, 20, 9]))
    tree = cluster(lk, method="kmeans", k=2)
    before = lk.version("clusters"), lk.version("cluster_members")
    cuts = sweep(lk, node=f"{tree.tree}/", sizes=[5, 15, 30])
    assert [(c.params["min_cluster_size"], c.clusters) for c in cuts] == [(5, 3), (15, 2), (30, 0)]
    assert [c.noise_share for c in cuts] == pytest.approx([0, 9 / 69, 1])
    assert cuts[0].largest_share == pytest.approx(40 / 69)
    assert 0 < (cuts[0].persistence or 0) <= 1
    assert cuts[2].persistence is None
    assert len(sweep(lk, node=f"{tree.tree}/")) >= 3
    assert (lk.version("clusters"), lk.version("cluster_members")) == before
    with pytest.raises(BadInput, match="sizes are"):
        sweep(lk, node=f"{tree.tree}/", sizes=[70])


def test_methods_are_compared_with_the_first(make_lake: MakeLake) -> None:
    lk = lake_of(make_lake, islands([40, 20]))
    tree = cluster(lk, method="kmeans", k=2)
    first, second = compare(lk, f"{tree.tree}/", ["hdbscan", "kmeans"], k=2)
    assert (first.method, first.clusters, first.agreement) == ("hdbscan", 2, None)
    assert (second.method, second.clusters, second.agreement) == ("kmeans", 2, pytest.approx(1.0))
    with pytest.raises(BadInput, match="which methods"):
        compare(lk, f"{tree.tree}/", [])
