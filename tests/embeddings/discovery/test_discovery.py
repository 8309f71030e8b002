"""Discovery on whole lakes: sentences, filters, slices, and what is refused."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import numpy as np
import pytest

from embeddings.backfill.vector_columns import store_vectors
from embeddings.discovery import findings
from embeddings.discovery.discovery import discover
from embeddings.embedders.embedder import bind, record_of
from lake import slices
from lake.analytics import metrics
from lake.errors import BadInput
from lake.open_lake import OpenLake
from tests.conftest import MakeLake
from tests.embeddings.colour import Random
from tests.lake.prediction_rows import add, image, label

START = dt.datetime(2026, 9, 7, tzinfo=dt.UTC)
N = 600


def _filled(lk: OpenLake, seed: int, bad: Any, vectors: np.ndarray | None = None, judged: bool = True) -> OpenLake:
    """N answers about images of their own: "fine" or "scratch", wrong in half of those that `bad` is true of."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for number in range(N):
        camera, site, wide = int(rng.integers(5)), "abc"[rng.integers(3)], float(rng.uniform(1, 9))
        wrong = rng.random() < (0.55 if bad(number, camera, site) else 0.06)
        truth = bool(rng.random() < 0.5)
        rows.append(
            {"image_id": image(number), "label": "scratch" if truth != wrong else "fine", "task": "classification"}
            | {"timestamp": START + dt.timedelta(hours=float(rng.uniform(0, 200))), "source": f"f{number % 3}/{number}"}
            | {"metadata": json.dumps({"camera": camera, "site": site, "gain": wide, "id": f"n{number}"})}
            | {"confidence": 0.4 if bad(number, camera, site) else 0.9}
        )
        labels.append((image(number), "scratch" if truth else "fine", START))
    add(lk, rows)
    if judged:
        label(lk, *labels)
    if vectors is not None:
        bind(lk, record_of(lk, None), Random())
        unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        store_vectors(lk, lk.embedders()[0].column, {image(i): vector for i, vector in enumerate(unit)})
    return lk


def _pair(number: int, camera: int, site: str) -> bool:
    return camera == 3 and site == "b"


def test_a_pair_of_metadata_is_named_filtered_and_saved(lk: OpenLake) -> None:
    discovery = discover(_filled(lk, 1, _pair), permutations=150)
    assert [finding.title for finding in discovery.findings] == ["camera 3 and site b"]
    worst = discovery.findings[0]
    assert worst.sentence().startswith("camera 3 and site b: ")
    assert worst.sentence().endswith(" points worse than the rest")
    # Its filter gives the same counts as the finding has.
    cell = metrics.by(lk, [], metrics.scope(lk, worst.predicate)).whole
    assert (cell.known, cell.known - cell.right) == (worst.reviewed, worst.wrong)
    assert worst.error.n + worst.rest.n == discovery.predictions == discovery.total == N
    assert worst.p <= 0.05
    assert worst.excess == pytest.approx(worst.wrong - worst.reviewed * (worst.rest.value or 0))
    wrong = set(lk.sql("SELECT image_id FROM predictions_reviewed WHERE NOT correct")["image_id"].to_pylist())
    assert worst.images
    assert set(worst.images) <= wrong
    assert discovery.remark is not None
    assert "the lake has no vectors" in discovery.remark
    assert findings.save(lk, discovery) == ["camera-3-and-site-b@1"]
    assert slices.get(lk, "camera-3-and-site-b").size == worst.reviewed
    facts = json.loads(json.dumps(findings.facts(discovery)))
    assert findings.facts(findings.of_facts(facts)) == facts
    assert facts["findings"][0]["conditions"][0] == {"dimension": "metadata.camera", "name": "camera", "value": "3"}


def test_nothing_is_reported_if_nothing_fails(lk: OpenLake) -> None:
    discovery = discover(_filled(lk, 2, lambda *_: False), permutations=150)
    assert discovery.findings == []
    assert discovery.compared > 50
    assert findings.save(lk, discovery) == []


def _aside() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    aside = rng.random(N) < 0.15
    points = rng.normal(size=(N, 8))
    points[aside, 2] += 4
    return points, aside


def test_a_finding_without_a_name_has_its_images(make_lake: MakeLake) -> None:
    pytest.importorskip("sklearn")
    points, aside = _aside()
    lk = _filled(make_lake(embedders=["x"]), 3, lambda number, *_: bool(aside[number]), points)
    worst = discover(lk, permutations=150).findings[0]
    kind = {image(number) for number in np.flatnonzero(aside)}
    assert worst.title == "similar images that no column describes"
    assert len(kind & {*worst.image_ids}) >= len(worst.image_ids) / 2
    assert worst.predicate is None
    # With a tree over the answers its clusters are told instead: they can be opened.
    from embeddings.clusters.drilldown import cluster

    tree = cluster(lk, method="kmeans", k=6).tree
    cluster_finding = discover(lk, by="cluster", permutations=150).findings[0]
    assert cluster_finding.node is not None
    assert cluster_finding.node.startswith(f"{tree}/")
    inside = metrics.by(lk, [], metrics.scope(lk, cluster_finding.predicate)).whole
    assert (inside.known, inside.known - inside.right) == (cluster_finding.reviewed, cluster_finding.wrong)


def test_without_labels_discovery_can_use_confidence(lk: OpenLake) -> None:
    _filled(lk, 4, _pair, judged=False)
    with pytest.raises(BadInput, match="--errors confidence"):
        discover(lk)
    discovery = discover(lk, errors="confidence", permutations=99)
    assert [finding.title for finding in discovery.findings] == ["camera 3 and site b"]
    assert discovery.findings[0].sentence("confidence").startswith("camera 3 and site b: mean confidence 0.")


def test_an_image_counts_once_and_bad_arguments_are_refused(lk: OpenLake) -> None:
    _filled(lk, 5, _pair)
    add(lk, [{"image_id": image(0), "label": "fine", "timestamp": START + dt.timedelta(days=90)} for _ in range(50)])
    discovery = discover(lk, by="metadata", permutations=99)
    assert discovery.predictions == N
    for options in ({"by": "x"}, {"errors": "x"}):
        with pytest.raises(BadInput, match="must be one of"):
            discover(lk, **options)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="0 predictions are reviewed"):
        discover(lk, "confidence > 2")
