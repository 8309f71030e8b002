"""Evaluation and the gate on a real lake with real heads on stored vectors; the gate's promises on simulated pairs."""

from __future__ import annotations

import datetime as dt
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.training import gate as simulation
from lake import ids, open_lake, slices
from lake.errors import BadInput
from lake.open_lake import OpenLake as Lake
from lake.storage import schema, store, vectors
from lake.storage.store import Lake as BaseLake
from search_app.cli import main
from tests.conftest import Say
from tests.lake import stock
from training.evaluation import comparison, evaluate, gate, gate_policy
from training.evaluation.gate_policy import GatePolicy, SliceRule
from training.models import probe
from training.registry import runs
from training.registry.recipe import Recipe
from training.tasks.task import Prediction

TURN = np.random.default_rng(7).normal(size=stock.DIM)


class Head:
    """A real probe as a model. `wrong`: images that it predicts wrongly; `requested`: the images that it predicted."""

    def __init__(self, lake: Lake, names: Sequence[str], wrong: Sequence[str] = (), dies_after: int = 10**9) -> None:
        self.record, self.wrong, self.requested, self.left = lake.embedders()[0], set(wrong), list[str](), dies_after
        image_ids, matrix = vectors.image_vectors(lake, self.record, names)
        self.head = probe.fit(matrix, [truth(lake, name) for name in image_ids], 0.01)

    def predictions_of(self, lake: BaseLake, image_ids: Sequence[str]) -> Iterator[Prediction]:
        names, matrix = vectors.image_vectors(lake, self.record, image_ids)
        for name, row in zip(names, self.head.probabilities(matrix), strict=True):
            self.left -= 1
            if self.left < 0:
                raise OSError("the power went")
            self.requested.append(name)
            k = int(row.argmax()) ^ (name in self.wrong)
            yield Prediction(
                name, self.head.classes[k], float(row[k]), [*zip(self.head.classes, row.tolist(), strict=True)]
            )


def truth(lake: Lake, name: str) -> str:
    return TRUTHS[name]


TRUTHS: dict[str, str] = {stock.image_id(n): "up" if float(stock.vector(n) @ TURN) > 0 else "down" for n in range(420)}


@pytest.fixture(scope="module")
def _judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judged") / "lake"
    lake = open_lake.create(str(path), embedders=["x"])
    names = stock.add(lake, range(420))
    stock.bind(lake)
    stock.embed(lake, range(420))
    now = store.now()
    labels = [
        {"event_id": ids.label_event_id(name, TRUTHS[name], "human"), "image_id": name, "timestamp": now}
        | {"task": "classification", "label": TRUTHS[name], "origin": "human"}
        for name in names
    ]
    lake.insert("labels", pa.Table.from_pylist(labels, schema=schema.LABELS.arrow()))
    slices.create(lake, "night", ids=names[:100], role="regression")
    slices.create(lake, "day", ids=names[100:180], role="evaluation")
    return path


@pytest.fixture
def judged(tmp_path: Path, _judged: Path) -> Lake:
    """420 images with vectors and labels: `night` (regression, 100), `day` (evaluation, 80), the rest to learn from."""
    shutil.copytree(_judged, tmp_path / "judged")
    return open_lake.open(str(tmp_path / "judged"))


def run_of(lake: Lake, parent: str | None = None) -> str:
    record = runs.create(lake, "turns", Recipe(kind="probe"), data={}, classes=["down", "up"], parent=parent)
    return runs.end(lake, record, "done").id


def test_a_fall_on_a_regression_slice_is_failed_and_its_images_are_named(
    judged: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = [stock.image_id(n) for n in range(180, 420)]
    old, new = run_of(judged), ""
    new = run_of(judged, parent=old)
    good = Head(judged, learned)
    evaluate.evaluate(judged, old, model=good)
    right = {row["image_id"] for row in evaluate.prediction_rows(judged, old, [*TRUTHS]).values()
             if row["label"] == TRUTHS[row["image_id"]]}  # fmt: skip
    night = [stock.image_id(n) for n in range(100)]
    broken = sorted(right & set(night))[:15]
    evaluation = evaluate.evaluate(judged, new, model=Head(judged, learned, wrong=broken))
    assert [result.slice for result in evaluation.slices] == ["day@1", "night@1"]
    assert evaluation.slices[1].metrics["accuracy"].n == 100
    assert set(evaluation.slices[1].metrics) == {"accuracy", "balanced_accuracy", "f1_macro", "auroc", "ece"}

    verdict = gate.gate(judged, new)  # the parent is the baseline
    assert (verdict.outcome, verdict.blocks, verdict.baseline) == ("failed", True, old)
    first = verdict.slices[0]
    assert (first.slice, first.outcome, first.standing) == ("night@1", "failed", "protected")
    assert sorted(first.newly_wrong) == broken
    assert first.fall == pytest.approx(0.15)
    assert first.p == pytest.approx(2.0**-15)
    day = verdict.slices[1]
    assert (day.outcome, day.blocks, day.fall) == ("undecided", False, 0.0)  # 80 images exclude no fall of 2 points
    assert day.needed is not None
    assert day.needed > 80

    row = judged.scan("gates", ["outcome", "blocks", "policy", "slices"]).to_pylist()[0]
    assert (row["outcome"], row["blocks"]) == ("failed", True)
    assert json.loads(row["slices"])[0]["newly_wrong"] == first.newly_wrong
    assert gate_policy.of(json.loads(row["policy"])) == GatePolicy()

    arguments = ["gate", "--lake", judged.uri, "--candidate", new, "--json"]
    assert main.main(arguments) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["slices"][0]["newly_wrong"] == first.newly_wrong
    assert main.main(arguments[:-1]) == 1
    text = capsys.readouterr().out
    assert "BLOCKS  night@1: failed" in text
    assert broken[0] in text
    # A policy that watches nothing else and allows much: the other way round nothing fell.
    file = tmp_path / "gate.toml"
    file.write_text('margin = 0.1\nwatched = ["day"]\n')
    better = ["gate", "--lake", judged.uri, "--candidate", old, "--baseline", new, "--policy", str(file)]
    assert main.main(better) == 0
    assert "may replace" in capsys.readouterr().out


def test_changes_and_what_is_forgotten(judged: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    learned = [stock.image_id(n) for n in range(180, 420)]
    old, new = run_of(judged), run_of(judged)
    evaluate.evaluate(judged, old, model=Head(judged, learned))
    flipped = [stock.image_id(n) for n in range(10)]
    evaluate.evaluate(judged, new, model=Head(judged, learned, wrong=flipped))
    night, day = comparison.compare(judged, old, new)
    assert (night.slice, day.slice) == ("night@1", "day@1")  # the largest fall first
    assert sorted(night.newly_wrong + night.newly_right) == sorted(flipped)
    assert day.fall == day.low == day.high == 0.0
    assert night.fall is not None
    assert night.low is not None
    assert night.low <= night.fall
    table = comparison.forgetting(judged, "turns")
    assert table.runs == [old, new]
    assert table.forgotten["day@1"] == 0.0
    assert table.forgotten["night@1"] == pytest.approx(night.fall)
    assert main.main(["forgetting", "turns", "--lake", judged.uri]) == 0
    assert "night@1" in capsys.readouterr().out
    assert main.main(["evaluate", new, "--lake", judged.uri, "--against", old, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["predicted"] == 0  # every answer is there already
    assert facts["against"][0]["newly_wrong"] == night.newly_wrong


def test_an_evaluation_that_died_goes_on(judged: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "COMMIT_IMAGES", 32)
    learned = [stock.image_id(n) for n in range(180, 420)]
    run = run_of(judged)
    with pytest.raises(OSError, match="power"):
        evaluate.evaluate(judged, run, model=Head(judged, learned, dies_after=100))
    assert judged.dataset("scores").count_rows() == 96
    assert judged.dataset("metrics").count_rows() == 0
    again = Head(judged, learned)
    evaluation = evaluate.evaluate(judged, run, model=again)
    assert len(again.requested) == evaluation.predicted == 180 - 96
    assert judged.dataset("scores").count_rows() == 180
    straight = evaluate.evaluate(judged, run_of(judged), model=Head(judged, learned))
    assert [result.metrics for result in straight.slices] == [result.metrics for result in evaluation.slices]


def test_what_cannot_be_judged_is_said(judged: Lake) -> None:
    learned = [stock.image_id(n) for n in range(180, 420)]
    old, new = run_of(judged), run_of(judged)
    with pytest.raises(BadInput, match="--baseline RUN"):
        gate.gate(judged, new)
    with pytest.raises(BadInput, match="compared with itself"):
        gate.gate(judged, new, new)
    evaluate.evaluate(judged, old, model=Head(judged, learned))
    with pytest.raises(BadInput, match=f"lakeloop evaluate {new}"):
        gate.gate(judged, new, old)
    with pytest.raises(BadInput, match="night"):
        evaluate.evaluate(judged, old, ["nigt"])
    evaluate.evaluate(judged, new, model=Head(judged, learned))
    with pytest.raises(BadInput, match="segmentation"):
        gate.gate(judged, new, old, GatePolicy(metric="miou"))


@pytest.mark.parametrize("metric", ["balanced_accuracy", "f1_macro", "auroc", "cost"])
def test_every_metric_fails_a_fall_and_passes_none(judged: Lake, metric: str) -> None:
    learned = [stock.image_id(n) for n in range(180, 420)]
    good, bad = run_of(judged), run_of(judged)
    evaluate.evaluate(judged, good, model=Head(judged, learned))
    rng = np.random.default_rng(0)
    short = Head(judged, learned)
    short.head = probe.Probe(short.head.classes, rng.normal(size=(stock.DIM, 2)), np.zeros(2))  # knows nothing
    evaluate.evaluate(judged, bad, model=short)
    policy = GatePolicy(metric=metric, margin=0.1, costs={"up": {"down": 1.0}})
    down = gate.gate(judged, bad, good, policy)
    up = gate.gate(judged, good, bad, policy)
    assert {verdict.outcome for verdict in down.slices} == {"failed"}
    assert {verdict.outcome for verdict in up.slices} == {"passed"}
    assert all(
        verdict.fall is not None and verdict.most is not None and verdict.most >= verdict.fall for verdict in up.slices
    )


# Policies --------------------------------------------------------------------------------------------------


def test_standings_and_rules() -> None:
    policy = gate_policy.of(
        {"margin": 0.03, "protected": ["mono*"], "watched": ["new-*"], "slices": {"poly": {"metric": "f1_macro"}}}
    )
    assert policy.standing("mono-old", None) == "protected"
    assert policy.standing("new-cells", "evaluation") == "watched"
    assert policy.standing("new-cells", "regression") == "protected"
    assert policy.undecided_blocks("mono-old", None)
    assert not policy.undecided_blocks("day", "evaluation")
    assert policy.metric_of("poly", "classification") == "f1_macro"
    assert policy.metric_of("day", "detection") == "map_50"
    assert policy.named() == ["poly"]
    assert gate_policy.of(json.loads(policy.json())) == policy


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"margins": 0.1}, "margin"),
        ({"margin": 0}, "above 0"),
        ({"margin": True}, "above 0"),
        ({"fail_level": 0.9}, "below 0.5"),
        ({"protected": "mono"}, "list"),
        ({"slices": {"a@2": {}}}, "without @"),
        ({"slices": {"a": {"margin": -1}}}, "slices.a.margin"),
        ({"slices": {"a": {"undecided_blocks": 1}}}, "true or false"),
        ({"costs": {"a": {"b": "x"}}}, "number from 0"),
        (["margin"], "table"),
    ],
)
def test_a_bad_policy_is_refused(data: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "gate.json"
    file.write_text(json.dumps(data))
    with pytest.raises(BadInput, match=message):
        gate_policy.load(file)
    assert SliceRule() == GatePolicy().rule("anything")


# Promises, on simulated pairs ------------------------------------------------------------------------------


def test_ten_slices_without_a_fall_are_failed_in_five_per_cent_at_most(say: Say) -> None:
    share = simulation.false_alarms(slices=10, n=400, rate=0.1, trials=1_500, seed=0)
    say(f"gate: false alarms of ten slices without a fall: {100 * share:.1f} % of 1,500 candidates")
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1_500)


def test_a_fall_of_five_points_is_failed_in_ninety_per_cent(say: Say) -> None:
    share = simulation.failed(n=400, rate=0.1, fall=0.05, trials=3_000, seed=0)
    say(f"gate: a fall of 5 points, n = 400, disagreement 10 %: failed in {100 * share:.1f} % of 3,000")
    assert share >= 0.9


@pytest.mark.parametrize("n", [10, 60, 400])
def test_a_fall_beyond_the_margin_is_passed_in_five_per_cent_at_most(n: int) -> None:
    share = simulation.passed(n=n, rate=0.08, fall=0.05, margin=0.05, trials=1_500, seed=0)
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1_500)


def test_metrics_that_are_resampled_pass_no_fall_beyond_the_margin(say: Say) -> None:
    resampled("f1_macro", 40, 40, say)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["f1_macro", "auroc", "balanced_accuracy"])
@pytest.mark.parametrize("n", [20, 60, 200, 1_000])
def test_metrics_that_are_resampled_pass_no_fall_beyond_the_margin_at_any_n(name: str, n: int, say: Say) -> None:
    resampled(name, n, 400, say)


@pytest.mark.soak
@pytest.mark.parametrize("n", simulation.SIZES)
@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1])
def test_a_fall_of_the_margin_is_passed_in_five_per_cent_at_most_at_every_n(n: int, margin: float) -> None:
    for rate in (margin, 1.5 * margin, 3 * margin):
        share = simulation.passed(n, rate, margin, margin, 10_000, 0)
        assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 10_000)


def resampled(name: str, n: int, trials: int, say: Say) -> None:
    share = simulation.passed_by_resampling(name, n, trials, seed=0)
    say(f"gate: {name} on {n} images, fall = margin: passed in {100 * share:.1f} % of {trials}")
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_an_image_with_an_incomplete_label_is_not_evaluated_and_counted(judged: Lake) -> None:
    names = [stock.image_id(n) for n in range(10)]
    rows = [
        {"event_id": f"partly-{name}", "image_id": name, "timestamp": store.now() + dt.timedelta(days=1)}
        | {"task": "classification", "label": TRUTHS[name], "origin": "import", "incomplete": True}
        for name in names[:3]
    ]
    judged.insert("labels", pa.Table.from_pylist(rows, schema=schema.LABELS.arrow()))
    slices.create(judged, "partly", ids=names)
    model = Head(judged, [stock.image_id(n) for n in range(180, 420)])
    (result,) = evaluate.evaluate(judged, run_of(judged), ["partly"], model=model, only=True).slices
    assert (result.images, result.labelled, result.incomplete, result.metrics["accuracy"].n) == (10, 7, 3, 7)
