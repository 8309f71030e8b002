"""Label Studio: a slice goes out as tasks with pre-labels, finished annotations come back once, as a person's word."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake import ids, slices
from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, ExportSample, GroundTruth
from lake.formats.export_files import ExportPart, ExportPlan, WholeExport
from lake.formats.label_studio import reader as label_studio
from lake.formats.label_studio import writer
from lake.formats.label_studio.reader import FinishedAnnotation, RejectedAnnotation
from lake.ingest import ingest
from lake.labels import labelling_tools
from lake.open_lake import OpenLake
from lake.regions import masks
from lake.slices import export, ground_truth
from lake.storage.blobs import StoredImage
from search_app.cli.main import main
from tests import pictures

WIDTH, HEIGHT = 24, 16
MOMENT = "2026-10-26T09:00:00.000000Z"

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
spans = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@st.composite
def truths(draw: st.DrawFn) -> GroundTruth:
    task = draw(st.sampled_from([CLASSIFICATION, DETECTION, SEGMENTATION]))
    if task == CLASSIFICATION:
        return GroundTruth(task, draw(names))
    if task == DETECTION:
        boxes = [
            annotation.box(draw(names), (x * WIDTH, y * HEIGHT, (right - x) * WIDTH, (bottom - y) * HEIGHT))
            for (x, right), (y, bottom) in draw(st.lists(st.tuples(spans, spans), max_size=3))
        ]
        return GroundTruth(task, boxes=boxes)
    found = []
    for _ in range(draw(st.integers(0, 2))):
        seed, share = draw(st.integers(0, 2**32 - 1)), draw(st.floats(0.05, 0.95))
        mask = np.random.default_rng(seed).random((HEIGHT, WIDTH)) < share
        mask[0, 0] = True  # a region without a point cannot be drawn
        found.append(annotation.mask(draw(names), masks.encode(mask), HEIGHT, WIDTH))
    return GroundTruth(task, masks=found)


def written(
    out: Path, truth: GroundTruth, image: StoredImage, answer: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The tasks of one image of which this is known."""
    out.mkdir()
    classes = sorted(name for name in truth.classes() if truth.task != CLASSIFICATION)
    plan = ExportPlan("s@1", 1, classes or [""] * (truth.task != CLASSIFICATION), [str(truth.label)], truth.task)
    part, left = ExportPart(out, plan, 0), out / "lines"
    left.mkdir()
    writer.write(part, iter([ExportSample(0, image, {truth.task: truth}, answer)]))
    for name, lines in part.lines.items():
        (left / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    writer.finish(WholeExport(out, plan, [left]))
    found: list[dict[str, Any]] = json.loads((out / "tasks.json").read_text("utf-8"))
    return found


def accepted(tasks: list[dict[str, Any]], by: Any = 1) -> list[dict[str, Any]]:
    """The export of a project in which a person took every pre-label as it was."""
    tasks = copy.deepcopy(tasks)
    for number, task in enumerate(tasks):
        result = task["predictions"][0]["result"] if task["predictions"] else []
        one = {"id": number, "completed_by": by, "result": result, "was_cancelled": False, "updated_at": MOMENT}
        task |= {"id": number, "annotations": [one], "drafts": [{"result": []}], "meta": {}}
    return tasks


def read(path: Path, content: Any) -> list[FinishedAnnotation | RejectedAnnotation]:
    path.write_text(json.dumps(content), "utf-8")
    return [*label_studio.read(path)]


@given(truths())
def test_what_was_sent_and_accepted_comes_back(tmp_path_factory: pytest.TempPathFactory, truth: GroundTruth) -> None:
    """Classes and masks to the last pixel, boxes to a millionth of one."""
    out = tmp_path_factory.mktemp("ls") / "out"
    image = StoredImage("a" * 64, b"x", "PNG", WIDTH, HEIGHT, "x")
    (found,) = read(out.with_name("finished.json"), accepted(written(out, truth, image)))
    assert isinstance(found, FinishedAnnotation)
    assert (found.image_id, found.annotator) == ("a" * 64, "label-studio 1")
    (said,) = found.annotations(WIDTH, HEIGHT).ground_truths
    assert (said.task, said.label, said.masks) == (truth.task, truth.label, truth.masks)
    assert [b["label"] for b in said.boxes or ()] == [b["label"] for b in truth.boxes or ()]
    for one, other in zip(said.boxes or (), truth.boxes or (), strict=True):
        assert all(abs(one[key] - other[key]) < 1e-6 for key in ("x", "y", "width", "height"))


def test_a_task_file_is_what_label_studio_reads(tmp_path: Path) -> None:
    image = StoredImage("b" * 64, b"bytes", "JPEG", 100, 50, "x")
    answer = {"model": "m", "model_version": "7", "label": "cat", "confidence": 0.25, "scores": None}
    (task,) = written(tmp_path / "out", GroundTruth(CLASSIFICATION, "d<o>g"), image, answer)
    file = f"images/{'b' * 64}.jpg"
    assert task["data"] == {
        "image": f"/data/local-files/?d=out/{file}",
        "image_id": "b" * 64,
        "asked": [CLASSIFICATION],
    }
    choice = {"id": "classification0", "type": "choices", "from_name": "classification", "to_name": "image"}
    assert task["predictions"] == [
        {"model_version": "labels", "result": [choice | {"value": {"choices": ["d<o>g"]}}]},
        {"model_version": "m/7", "score": 0.25, "result": [choice | {"value": {"choices": ["cat"]}}]},
    ]
    assert (tmp_path / "out" / file).read_bytes() == b"bytes"
    config = (tmp_path / "out" / "label-config.xml").read_text()
    assert config.splitlines()[2:5] == [
        '  <Choices name="classification" toName="image" choice="single">',
        '    <Choice value="cat"/>',
        '    <Choice value="d&lt;o&gt;g"/>',
    ]
    box = GroundTruth(DETECTION, boxes=[annotation.box("dog", (10, 5, 50, 25))])
    (task,) = written(tmp_path / "boxes", box, image)
    (region,) = task["predictions"][0]["result"]
    assert (region["original_width"], region["original_height"]) == (100, 50)
    assert region["value"] == {"x": 10, "y": 10, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["dog"]}


@pytest.fixture
def sent(lk: OpenLake, tmp_path: Path) -> tuple[OpenLake, list[str], list[dict[str, Any]]]:
    """Three unlabelled images in a slice, sent out, and the answers of a person: cat, dog, cat."""
    paths = pictures.folder(tmp_path / "in", 3)
    ingest.ingest(lk, tmp_path / "in", workers=1)
    names = sorted(ids.image_id(p.read_bytes()) for p in paths)
    export.export(lk, slices.create(lk, "odd", where="true"), tmp_path / "out", "label-studio")
    tasks = accepted(json.loads((tmp_path / "out" / "tasks.json").read_text("utf-8")))
    for task, label in zip(tasks, ("cat", "dog", "cat"), strict=True):
        task["annotations"][0]["result"] = [{"type": "choices", "value": {"choices": [label]}}]
    return lk, names, tasks


def labels(lk: OpenLake) -> dict[str, str]:
    rows = lk.sql("SELECT image_id, label FROM labels_current WHERE origin = 'human'").to_pylist()
    return {row["image_id"]: row["label"] for row in rows}


def saved(tmp_path: Path, tasks: Any) -> Path:
    path = tmp_path / "finished.json"
    path.write_text(json.dumps(tasks), "utf-8")
    return path


def test_labels_come_in_once_and_are_frozen_into_the_next_slice(
    sent: tuple[OpenLake, list[str], list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lk, names, tasks = sent
    command = ["labels", "import", str(saved(tmp_path, tasks)), "--lake", lk.uri, "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert (first["labels_new"], first["labels_known"], first["images"], first["rejected"]) == (3, 0, 3, [])
    assert (again["labels_new"], again["labels_known"]) == (0, 3)
    assert labels(lk) == dict(zip(names, ("cat", "dog", "cat"), strict=True))
    made = slices.create(lk, "odd", where="true")
    truths = ground_truth.of_images(lk, slices.contents(lk, made))
    assert {n: t[CLASSIFICATION].label for n, t in truths.items()} == labels(lk)


def test_a_changed_mind_counts_and_so_does_a_second_change(
    sent: tuple[OpenLake, list[str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    lk, names, tasks = sent
    for hour, label in (("10", "dog"), ("11", "cat"), ("12", "dog"), ("13", "cat")):
        one = tasks[0]["annotations"][0]
        one |= {
            "updated_at": f"2026-10-26T{hour}:00:00Z",
            "result": [{"type": "choices", "value": {"choices": [label]}}],
        }
        labelling_tools.import_annotations(lk, saved(tmp_path, tasks))
        assert labels(lk)[names[0]] == label
    assert lk.dataset("labels").count_rows() == 4 + 2


def test_skipped_tasks_say_nothing_and_a_detection_without_regions_says_that_nothing_is_there(
    sent: tuple[OpenLake, list[str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    lk, names, tasks = sent
    tasks[0]["annotations"][0]["was_cancelled"] = True
    tasks[1]["data"]["asked"] = ["detection"]
    tasks[1]["annotations"][0]["result"] = []
    tasks[2]["annotations"] = []
    report = labelling_tools.import_annotations(lk, saved(tmp_path, tasks))
    assert (report.labels_new, report.rejected) == (1, [])
    (row,) = lk.scan("labels", ["image_id", "task", "boxes", "origin", "annotator"]).to_pylist()
    assert row == {
        "image_id": names[1],
        "task": "detection",
        "boxes": [],
        "origin": "human",
        "annotator": "label-studio 1",
    }


def region(**changed: Any) -> dict[str, Any]:
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["cat"]}
    return {"type": "rectanglelabels", "original_width": 24, "original_height": 16, "value": value | changed}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"result": []}, "no class was chosen"),
        ({"result": None}, "result is missing"),
        ({"result": [{"type": "choices", "value": {"choices": ["a", "b"]}}]}, "2 classes, 'a', 'b': an image has one"),
        ({"result": [{"type": "brushlabels", "value": {"brushlabels": ["a"]}}]}, "brushlabels is not supported"),
        ({"result": [region(rectanglelabels=["a", "b"])]}, "['a', 'b']; a region has one class"),
        ({"result": [region(x=101)]}, "the rectangle is outside the image"),
        ({"result": [region(width="20")]}, "width is '20', not a number"),
        ({"result": [region(width=-1)]}, "negative width"),
        ({"result": [region() | {"original_width": 48}]}, "drawn on 48 x 16 pixels; the lake's image has 24 x 16"),
        ({"result": [region() | {"image_rotation": 90}]}, "the image was rotated by 90 degrees"),
        ({"updated_at": "yesterday"}, "its time is 'yesterday'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_the_others_come_in(
    sent: tuple[OpenLake, list[str], list[dict[str, Any]]], tmp_path: Path, wrong: dict[str, Any], reason: str
) -> None:
    lk, names, tasks = sent
    tasks[1]["annotations"][0] |= wrong
    report = labelling_tools.import_annotations(lk, saved(tmp_path, tasks))
    (rejected,) = report.rejected
    assert rejected["source"].removesuffix(".result[0]") == "finished.json: [1].annotations[0]"
    assert reason in rejected["reason"]
    assert sorted(labels(lk)) == [names[0], names[2]]


def test_one_result_that_cannot_be_read_does_not_cost_the_others(
    sent: tuple[OpenLake, list[str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    lk, names, tasks = sent
    choice = {"type": "choices", "value": {"choices": ["cat"]}}
    comment = {"type": "textarea", "value": {"text": ["blurred", "look again"]}}
    tasks[0]["annotations"][0]["result"] = [choice, comment, {"type": "rating", "value": {"rating": 4}}]
    tasks[1]["annotations"][0]["result"] = [region(x=i) for i in range(3)] + [region(x=101)]
    two = [choice, {"type": "choices", "value": {"choices": ["dog"]}}, region()]
    tasks[2]["annotations"][0]["result"] = two
    report = labelling_tools.import_annotations(lk, saved(tmp_path, tasks))
    columns = ["image_id", "task", "label", "boxes", "comment", "incomplete"]
    rows = {(r["image_id"], r["task"]): r for r in lk.scan("labels", columns).to_pylist()}
    assert {k: (r["label"], len(r["boxes"] or ()), r["comment"], r["incomplete"]) for k, r in rows.items()} == {
        (names[0], CLASSIFICATION): ("cat", 0, "blurred\nlook again", False),
        (names[1], DETECTION): (None, 3, None, True),
        (names[2], DETECTION): (None, 1, None, False),
    }
    assert [r["source"] for r in report.rejected] == [
        "finished.json: [1].annotations[0].result[3]",
        "finished.json: [2].annotations[0]",
    ]
    assert (dict(report.converted), dict(report.incomplete)) == (
        {"rating is not kept": 1},
        {DETECTION: 1, CLASSIFICATION: 1},
    )


def test_a_turned_rectangle_becomes_a_polygon_with_its_enclosing_box() -> None:
    """By 90 degrees around the left upper corner (12, 4): 6 x 4 pixels to the right become 4 x 6 to the left."""
    turned = region(x=50, y=25, width=25, height=25, rotation=90)
    found = FinishedAnnotation("f", "a" * 64, "me", None, None, (), [region(), region(), turned])
    said = found.annotations(WIDTH, HEIGHT)
    boxes, drawn = {t.task: t for t in said.statements()}[DETECTION], said.ground_truths[-1]
    assert [len(boxes.boxes or ()), boxes.incomplete, len(drawn.masks or ()), drawn.incomplete] == [3, False, 1, True]
    assert annotation.extent((drawn.masks or ())[0]) | {"label": None} == annotation.box(None, (8, 4, 4, 6))
    assert [round(boxes.boxes[-1][k], 9) for k in ("x", "y", "width", "height")] == [8, 4, 4, 6]  # type: ignore[index]
    assert [sentence for _, sentence in said.converted] == [label_studio.TURNED]


@pytest.mark.parametrize(("task", "kind"), [(SEGMENTATION, "rectanglelabels"), (DETECTION, "polygonlabels")])
def test_an_answer_in_another_form_than_was_asked_for_does_not_say_that_nothing_is_there(task: str, kind: str) -> None:
    polygon = {"points": [[10, 10], [50, 10], [50, 50]], "polygonlabels": ["cat"]}
    result = region() if kind == "rectanglelabels" else region() | {"type": kind, "value": polygon}
    found = FinishedAnnotation("f", "a" * 64, "me", None, None, (task,), [result])
    said = {t.task: t for t in found.annotations(WIDTH, HEIGHT).statements()}
    assert all(t.says_something() for t in said.values())
    assert len(said[DETECTION].boxes or ()) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"tasks": []}, "is not a list of Label Studio tasks"),
        ([], "has no finished annotation"),
        ([{"id": 1, "annotation_id": 2, "image": "x"}], "finished.json: [0]: this is the export JSON-MIN"),
        ([{"data": {"image": "cat.jpg"}, "annotations": []}], "neither data.image_id nor"),
        ([{"data": {"image_id": "x"}, "annotations": []}], "data.image_id is 'x', not 64 hex digits"),
        (["text"], "it is not an object"),
    ],
)
def test_a_wrong_file_is_refused_and_changes_nothing(lk: OpenLake, tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(BadInput) as caught:
        labelling_tools.import_annotations(lk, saved(tmp_path, content))
    assert reason in str(caught.value)
    assert lk.dataset("labels").count_rows() == 0


def test_an_image_of_another_lake_is_refused_and_an_upload_is_known_by_its_name(
    sent: tuple[OpenLake, list[str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    lk, names, tasks = sent
    tasks[0]["data"] = {"image": f"/data/upload/1/1f2e3d4c-{names[0]}.png"}
    tasks[1]["data"] = {"image_id": "c" * 64}
    report = labelling_tools.import_annotations(lk, saved(tmp_path, tasks))
    assert [one["reason"] for one in report.rejected] == [f"the lake has no image {'c' * 64}"]
    assert sorted(labels(lk)) == [names[0], names[2]]
