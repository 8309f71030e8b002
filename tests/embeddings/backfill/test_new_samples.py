"""A new sample of an image that has a vector has it at once, by every way in."""

import json
from pathlib import Path

import numpy as np
import pytest

from embeddings.backfill.backfill import backfill
from embeddings.embedders.embedder import record_of
from embeddings.search.search import search
from lake import ids
from lake.analytics import summary
from lake.ingest import ingest
from lake.open_lake import OpenLake
from lake.spool.drain import drain
from lake.spool.spool import Spool
from tests.conftest import MakeLake
from tests.embeddings.colour import MeanColour
from tests.lake.live_events import prediction
from tests.pictures import encoded, flat

RED, GREEN, BLUE = (encoded(flat(colour)) for colour in ((200, 10, 10), (10, 200, 10), (10, 10, 200)))


@pytest.fixture
def embedded(make_lake: MakeLake, tmp_path: Path) -> OpenLake:
    """A lake with the vectors of a red and a green image, without a prediction; blue.png is beside them."""
    lk = make_lake(embedders=["mean-colour"])
    for name, data in {"red": RED, "green": GREEN}.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    ingest.ingest(lk, tmp_path, "folder", workers=1)
    backfill(lk, record_of(lk, None), MeanColour(), workers=1)
    (tmp_path / "blue.png").write_bytes(BLUE)
    return lk


def by_model(lk: OpenLake) -> dict[str, float]:
    """source -> similarity to red of the predictions of model m."""
    red = np.array([200, 10, 10], np.float32)
    found = search(lk, vector=red / np.linalg.norm(red), where="model = 'm'", columns=["source"])
    return dict(zip(found["source"].to_pylist(), found["similarity"].to_pylist(), strict=True))


def embedded_images(lk: OpenLake) -> tuple[int, int]:
    (progress,) = summary.embedding_progress(lk, lk.embedders())
    return progress["embedded"], progress["missing"]


def test_of_a_prediction_log(embedded: OpenLake, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    rows = [{"image": f"{name}.png", "label": "a", "model": "m", "source": name} for name in ("red", "green", "blue")]
    log.write_text("\n".join(map(json.dumps, rows)))
    report = ingest.ingest(embedded, log, workers=1)
    assert (report.predictions_new, report.images_new) == (3, 1)
    assert [*by_model(embedded)] == ["red", "green"]
    assert by_model(embedded)["red"] == pytest.approx(1)
    assert embedded_images(embedded) == (2, 1)
    backfill(embedded, record_of(embedded, None), MeanColour(), workers=1)
    assert {*by_model(embedded)} == {"red", "green", "blue"}
    assert embedded_images(embedded) == (3, 0)


def test_of_a_live_event(embedded: OpenLake, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put([
        prediction(1, RED, source="red"), prediction(2, image_id=ids.image_id(GREEN), source="green"),
        prediction(3, BLUE, source="blue"),
    ])  # fmt: skip
    drain(embedded, spool)
    spool.close()
    assert [*by_model(embedded)] == ["red", "green"]
    assert embedded_images(embedded) == (2, 1)
