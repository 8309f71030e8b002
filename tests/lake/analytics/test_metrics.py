"""Metrics by any dimension, on predictions you can count by hand; the filter of a cell selects its predictions."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pyarrow as pa
import pytest

from lake import slices
from lake.analytics import dimensions, metrics
from lake.analytics.statistics import wilson
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.regions.masks import encode
from lake.storage import schema
from tests.conftest import MakeLake
from tests.lake.prediction_rows import add, image, label

MONDAY = dt.datetime(2026, 9, 7, 6, tzinfo=dt.UTC)


def add_verdicts(lake: OpenLake, *verdicts: tuple[str, str, str, int]) -> None:
    """Adds verdicts (prediction_id, origin, verdict, hours after MONDAY)."""
    rows = [
        {
            "event_id": str(uuid.uuid4()),
            "prediction_id": prediction_id,
            "image_id": image(prediction_id),
            "origin": origin,
        }
        | {"verdict": verdict, "timestamp": MONDAY + dt.timedelta(hours=hours), "ingested_at": MONDAY}
        for prediction_id, origin, verdict, hours in verdicts
    ]
    lake.insert("reviews", pa.Table.from_pylist(rows, schema=schema.REVIEWS.arrow()))


@pytest.fixture
def judged(make_lake: MakeLake) -> OpenLake:
    """Twelve predictions, two for each of six images: model 1 predicts a, model 2 predicts a and b in turn.

    Even images are a, odd images are b, the last two have no label; line is x for the first three images.
    """
    lk = make_lake(columns={"line": "string", "level": "int", "lit": "bool"})
    rows: list[dict[str, Any]] = []
    for number in range(6):
        for version in (1, 2):
            answer = "a" if version == 1 or number % 2 == 0 else "b"
            rows.append(
                {"image_id": image(number), "model_version": str(version), "label": answer, "task": "classification"}
                | {"confidence": 0.5 + number / 20, "timestamp": MONDAY + dt.timedelta(days=number, hours=version)}
                | {"source": f"cam/{number % 2}/{number}.jpg", "line": "x" if number < 3 else "y's"}
                | {"level": 7 * number, "lit": number % 3 == 0 if number else None}
                | {"metadata": f'{{"site": "s{number % 2}", "gain": {number}.5, "odd key": null}}'}
            )
    add(lk, rows)
    label(lk, *((image(number), "ab"[number % 2], MONDAY) for number in range(4)))
    return lk


def _counts(breakdown: metrics.Breakdown) -> dict[tuple[str | None, ...], tuple[int, int, int]]:
    return {cell.values: (cell.predictions, cell.known, cell.right) for cell in breakdown.cells}


def test_metrics_by_one_column_and_by_two(judged: OpenLake) -> None:
    breakdown = metrics.by(judged, ["line"])
    # Of x's images 0, 1, 2 model 1 is wrong about 1; of y's image 3 alone is labelled, and model 1 is wrong.
    assert _counts(breakdown) == {("x",): (6, 6, 5), ("y's",): (6, 2, 1)}
    assert breakdown.whole.error == wilson(2, 8)
    assert breakdown.whole.confidence == pytest.approx(0.625)
    crossed = metrics.by(judged, ["model_version", "line"])
    assert _counts(crossed)["1", "x"] == (3, 3, 2)
    assert _counts(crossed)["2", "y's"] == (3, 1, 1)
    assert {cell.values: cell.right for cell in crossed.margins[0]} == {("1", None): 2, ("2", None): 4}
    assert {cell.values: cell.known for cell in crossed.margins[1]} == {(None, "x"): 6, (None, "y's"): 2}


_NAMED = """line level lit label model model_version version folder source task hour weekday day week month confidence
    site metadata.site gain true_label judged_by box_size image_status"""


@pytest.mark.parametrize("name", [*_NAMED.split(), "odd key"])
def test_the_filter_of_a_cell_selects_its_predictions(judged: OpenLake, name: str) -> None:
    add(judged, [{"image_id": image("new"), "boxes": [{"label": "a", "x": 0, "y": 0, "width": 40, "height": 40}]}])
    breakdown = metrics.by(judged, [name])
    assert breakdown.cells
    for cell in breakdown.cells:
        predicate = breakdown.predicate(cell)
        assert predicate is not None
        inside = metrics.by(judged, [], metrics.scope(judged, predicate)).whole
        assert (inside.predictions, inside.known, inside.right) == (cell.predictions, cell.known, cell.right), (
            name,
            cell,
        )
    if name != "box_size":
        assert sum(cell.predictions for cell in breakdown.cells) == 13


def test_numbers_are_binned_by_equal_counts_inside_the_scope(judged: OpenLake) -> None:
    add(judged, [{"image_id": image(f"n{number}"), "level": 1_000 + number} for number in range(100)])
    breakdown = metrics.by(judged, ["level"], "level >= 1000")
    assert [cell.predictions for cell in breakdown.cells] == [20] * 5
    assert [cell.values[0] for cell in breakdown.cells][:2] == ["up to 1019", "1019 to 1039"]
    assert breakdown.predicate(breakdown.cells[0]) == "(TRY_CAST(level AS DOUBLE) <= 1019)"


def test_a_label_decides_before_a_verdict_and_the_latest_verdict_counts(lk: OpenLake) -> None:
    labelled, complained, unsure, twice, silent = add(lk, [{"label": "a", "image_id": image(n)} for n in range(5)])
    label(lk, (image(0), "a", MONDAY))
    add_verdicts(lk, (labelled, "customer", "incorrect", 0), (complained, "customer", "incorrect", 0))
    add_verdicts(lk, (unsure, "customer", "correct", 0), (unsure, "customer", "unsure", 1))
    add_verdicts(lk, (twice, "customer", "incorrect", 0), (twice, "reviewer", "correct", 1))
    rows = lk.sql("SELECT prediction_id, correct, judged_by FROM predictions_reviewed").to_pylist()
    assert {row["prediction_id"]: (row["correct"], row["judged_by"]) for row in rows} == {
        labelled: (True, "label"),
        complained: (False, "verdict"),
        unsure: (None, None),
        twice: (True, "verdict"),
        silent: (None, None),
    }


def test_confusion_and_its_images(judged: OpenLake) -> None:
    assert metrics.confusion(judged) == {("a", "a"): 4, ("b", "a"): 2, ("b", "b"): 2}
    assert metrics.confused(judged, "b", "a") == [image(3), image(1)]  # the surer first
    assert metrics.confused(judged, "b", "a", "line = 'x'") == [image(1)]
    balance = {entry.name: entry for entry in metrics.classes(judged)}
    assert (balance["b"].labelled, balance["b"].predicted) == (2, 3)
    assert (balance["b"].recall.value, balance["b"].precision.value, balance["b"].precision.n) == (0.5, 1.0, 2)


def test_two_models_on_the_same_images(judged: OpenLake) -> None:
    result = metrics.compare(judged, "m 1", "m 2")
    assert (result.both, result.only_old, result.only_new, result.neither, result.n) == (
        2,
        0,
        2,
        0,
        4,
    )
    assert (result.broken, result.repaired, result.p) == ([], [image(3), image(1)], 0.5)
    assert metrics.compare(judged, "m 2", "m 1", "line = 'x'").broken == [image(1)]
    # A later answer of the old model about image 1 is the one that counts.
    late = MONDAY + dt.timedelta(days=90)
    add(judged, [{"image_id": image(1), "model_version": "1", "label": "b", "timestamp": late}])
    assert metrics.compare(judged, "m 1", "m 2").repaired == [image(3)]
    for pair, words in ((("m 1", "m"), "the same model"), (("m 1", "m 9"), "no predictions of a model 'm 9'")):
        with pytest.raises(BadInput, match=words):
            metrics.compare(judged, *pair)


def test_metrics_by_day_and_the_list_of_models(judged: OpenLake) -> None:
    days = metrics.days(judged)
    assert [(day.day.isoformat(), day.predictions, day.known, day.right) for day in days][:2] == [
        ("2026-09-07", 2, 2, 2),
        ("2026-09-08", 2, 2, 1),
    ]
    assert metrics.models(judged) == ["m 2", "m 1"]


def test_scope_is_a_filter_a_slice_and_models(judged: OpenLake) -> None:
    slices.create(judged, "some", ids=[image(0), image(1)])
    combined = metrics.scope(judged, "line = 'x' -- only", "some", ["m 1"])
    assert metrics.by(judged, [], combined).whole.predictions == 2
    assert metrics.scope(judged) is None
    assert _counts(metrics.by(judged, ["slice"])) == {("some",): (4, 4, 3)}
    assert _counts(metrics.by(judged, ["slice:some"])) == {("in some",): (4, 4, 3), ("not in it",): (8, 4, 3)}
    for arguments, words in (
        ({"where": "nope = 1"}, "nope"),
        ({"slice": "sum"}, "sum"),
        ({"models": ["z"]}, "there are m"),
    ):
        with pytest.raises(BadInput, match=words):
            metrics.scope(judged, **arguments)


def test_an_unknown_dimension_is_refused_with_the_nearest_name(judged: OpenLake) -> None:
    for name, words in (("lien", "did you mean line"), ("metadata.sit", "metadata.site"), ("qqq", "there are line, ")):
        with pytest.raises(BadInput, match=words):
            metrics.by(judged, [name])
    for names in (["line", "line"], ["line", "site", "day"]):
        with pytest.raises(BadInput, match="one or two different"):
            metrics.by(judged, names)
    for name in ("cluster", "cluster:none/0", "slice", "slice:none", "what:ever"):
        with pytest.raises(BadInput):
            metrics.by(judged, [name])
    assert {"line", "metadata.site", "metadata.odd key", "box_size", "version"} <= {*dimensions.names(judged)}


def test_a_prediction_counts_in_every_size_it_has(lk: OpenLake) -> None:
    import numpy as np

    def mask(side: int) -> dict[str, Any]:
        drawn = np.zeros((120, 120), bool)
        drawn[:side, :side] = True
        return {"label": "a", "height": 120, "width": 120, "counts": encode(drawn)}

    box = {"label": "a", "x": 0, "y": 0, "width": 32, "height": 32}
    add(lk, [{"boxes": [box, box | {"width": 31}], "masks": [mask(95), mask(96)]}, {"boxes": [box], "masks": []}, {}])
    assert _counts(metrics.by(lk, ["box_size"])) == {("small",): (1, 0, 0), ("medium",): (2, 0, 0)}
    breakdown = metrics.by(lk, ["mask_size", "box_size"])
    assert {cell.values for cell in breakdown.cells} == {
        (m, b) for m in ("medium", "large") for b in ("small", "medium")
    }
    assert breakdown.whole.predictions == 3
