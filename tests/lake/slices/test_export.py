"""A slice as files: from one lake into another, stopped and gone on with, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lake import ids, slices
from lake.analytics import summary
from lake.errors import BadInput, CouldNot
from lake.formats import annotation, marks
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, GroundTruth
from lake.formats.item import Item
from lake.formats.paths import MANIFEST
from lake.ingest import ingest
from lake.open_lake import OpenLake
from lake.regions import masks
from lake.slices import export, ground_truth
from lake.storage import schema, store
from search_app.cli.main import main
from tests import pictures
from tests.conftest import MakeLake, Say

WIDTH, HEIGHT = 24, 16
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[2:6, 3:9] = MASK[10, 20] = True
SAID = [
    GroundTruth(CLASSIFICATION, "../é a"),
    GroundTruth(CLASSIFICATION, "b:c\n"),
    GroundTruth(DETECTION, boxes=[annotation.box(n, (1.5, 2, 3.25, 4)) for n in ("dog", "dog", None)]),
    GroundTruth(DETECTION, boxes=[]),
    GroundTruth(SEGMENTATION, masks=[annotation.mask('x"y', masks.encode(MASK), HEIGHT, WIDTH)]),
]


@pytest.fixture
def filled(lk: OpenLake, tmp_path: Path) -> tuple[OpenLake, list[str]]:
    """Six images, five of them with a label, two with an answer; the slice `s` of all."""
    paths = pictures.folder(tmp_path / "in", 6)
    ingest.ingest(lk, tmp_path / "in", workers=1)
    names = sorted(ids.image_id(p.read_bytes()) for p in paths)
    rows = [
        {
            "event_id": annotation.event_id(n, t),
            "image_id": n,
            "timestamp": store.now(),
            "task": t.task,
            "origin": "human",
        }
        | {"label": t.label, "boxes": t.boxes, "masks": t.masks}
        for n, t in zip(names, SAID, strict=False)
    ]
    lk.insert("labels", pa.Table.from_pylist(rows, schema=schema.LABELS.arrow()))
    answers = [
        {"prediction_id": ids.bare_prediction_id(f"answer {n}"), "image_id": n, "model": "m", "model_version": "2"}
        | {"task": "detection", "label": "cat", "confidence": 0.5, "timestamp": store.now(), "ingested_at": store.now()}
        | {"boxes": [annotation.box("cat", (1, 1, 2, 2), 0.25)], "metadata": '{"camera": 3}'}
        for n in names[:2]
    ]
    lk.insert("samples", pa.Table.from_pylist(answers, schema=schema.SAMPLES.arrow()))
    slices.create(lk, "s", where="true")
    return lk, names


def labels_of(lake: OpenLake) -> dict[str, dict[str, GroundTruth]]:
    slice_ = slices.create(lake, "all", where="true")
    return ground_truth.of_images(lake, slices.contents(lake, slice_))


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("format", [f for f in export.FORMATS if f not in ("list", "label-studio")])
def test_into_another_lake(
    filled: tuple[OpenLake, list[str]], make_lake: MakeLake, tmp_path: Path, format: str
) -> None:
    """Same images, labels, boxes, masks, answers; what the format cannot say is counted, and nothing else is gone."""
    lk, names = filled
    model = "m" if export.FORMATS[format].predictions else None
    report = export.export(lk, slices.get(lk, "s"), tmp_path / "out", format, predictions=model)
    other = make_lake("other")
    took = ingest.ingest(other, tmp_path / "out", workers=1)
    again = ingest.ingest(other, tmp_path / "out", workers=1)
    assert (took.images_new, took.rejected, report.left_out) == (6, [], [])
    assert (again.images_new, again.labels_new, again.predictions_new, again.rejected) == (0, 0, 0, [])
    assert {*other.scan("images", ["image_id"])["image_id"].to_pylist()} == {*names}
    wanted = {n: {t.task: t} for n, t in zip(names, SAID, strict=False)}
    restored = labels_of(other)
    gone = sum(restored.get(n) != t for n, t in wanted.items())
    assert gone == sum(report.unsaid.values())
    assert gone == {"imagefolder": 3, "yolo": 4, "voc": 2}.get(format, 0)
    if model:
        before, after = (
            ground_truth.newest_predictions(lk, "m", names),
            ground_truth.newest_predictions(other, "m", names),
        )
        assert {n: {**a, "source": ""} for n, a in after.items()} == {n: {**a, "source": ""} for n, a in before.items()}


@pytest.mark.parametrize("format", export.FORMATS)
def test_stopped_and_gone_on_with(
    filled: tuple[OpenLake, list[str]], tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stop the files are those of an export that was never stopped; a spoilt one is written anew."""
    monkeypatch.setattr(export, "PART_IMAGES", 2)
    lk, _ = filled
    slice_ = slices.get(lk, "s")
    whole = tmp_path / "whole" / "out"  # Label Studio's tasks name the folder
    export.export(lk, slice_, whole, format)
    for stop in (1, 3):
        out, seen = tmp_path / f"stopped {stop}" / "out", list[Any]()

        def count(images: int, stop: int = stop, seen: list[int] = seen) -> None:
            seen.append(images)
            if len(seen) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export.export(lk, slice_, out, format, progress=count)
        if format != "list":
            with pytest.raises(BadInput, match="unfinished export"):
                ingest.ingest(lk, out)
        spoilt = next((p for p in sorted(out.rglob("*")) if p.suffix in (".png", ".jpg", ".tar")), None)
        if spoilt is not None:
            spoilt.write_bytes(b"spoilt")
        report = export.export(lk, slice_, out, format)
        assert report.images == 6
        assert report.resumed == 2 * stop - 2 * (spoilt is not None)
        if format == "lance":
            import lance

            rows = [lance.dataset(str(p / "slice.lance")).to_table().to_pylist() for p in (out, whole)]
            assert rows[0] == rows[1]
        else:
            assert files(out) == files(whole)
        assert export.export(lk, slice_, out, format).already


def test_the_manifest_has_every_file(filled: tuple[OpenLake, list[str]], tmp_path: Path) -> None:
    lk, _ = filled
    report = export.export(lk, slices.get(lk, "s"), tmp_path / "out", "coco")
    checked = subprocess.run(["sha256sum", "-c", "--quiet", export.HASHES], cwd=tmp_path / "out", check=False)
    assert checked.returncode == 0
    listed = {line.split("  ", 1)[1] for line in (tmp_path / "out" / export.HASHES).read_text().splitlines()}
    assert listed == {*files(tmp_path / "out")} - {export.HASHES, MANIFEST}
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert (manifest["slice"], manifest["format"], manifest["state"]) == ("s@1", "coco", "complete")
    assert (manifest["images"], manifest["files"], report.files) == (6, len(listed), len(listed))


def test_what_is_refused_changes_nothing(filled: tuple[OpenLake, list[str]], tmp_path: Path) -> None:
    lk, _ = filled
    slice_ = slices.get(lk, "s")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").touch()
    export.export(lk, slice_, tmp_path / "done", "list")
    before = files(tmp_path / "done")
    for out, how, reason in (
        ("mine", {"format": "coco"}, "not an empty folder"),
        ("new", {"format": "zip"}, "must be one of imagefolder, coco"),
        ("new", {"format": "voc", "predictions": "m"}, "no place for predictions"),
        ("new", {"format": "coco", "predictions": "n"}, "no predictions of a model 'n'; the lake has m"),
        ("done", {"format": "coco"}, "is an export of slice s@1, format list"),
    ):
        with pytest.raises(BadInput, match=reason):
            export.export(lk, slice_, tmp_path / out, **how)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    assert files(tmp_path / "done") == before
    assert os.listdir(tmp_path / "mine") == ["a.txt"]


def test_an_image_without_bytes_is_told(filled: tuple[OpenLake, list[str]], tmp_path: Path, capsys: Any) -> None:
    """It is in the manifest and on stderr; the command fails only when nothing could be written."""
    lk, names = filled
    lk.delete("images", f"image_id = '{names[0]}'")
    report = export.export(lk, slices.get(lk, "s"), tmp_path / "out", "coco")
    assert report.left_out == [{"image_id": names[0], "reason": "its bytes were not kept"}]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["left_out"] == report.left_out
    command = ["slice", "export", "s", "--lake", lk.uri, "--format", "jsonl", "--out"]
    assert main([*command, str(tmp_path / "a")]) == 0
    assert "1 images left out" in capsys.readouterr().err
    lk.delete("images", "true")
    assert main([*command, str(tmp_path / "b")]) == CouldNot.exit_code
    assert "none of the 6 images of s@1 could be written" in capsys.readouterr().err


HOSTILE = ["../x", "a/b", ".", "..", "con", "/etc", "~", "nul\0", "%2F", "é", "a\nb", "x" * 400, "_unlabelled"]


def test_an_imagefolder_stays_inside(lk: OpenLake, tmp_path: Path, make_lake: MakeLake, say: Say) -> None:
    """Every image lies exactly two levels down, whatever its label; and its label comes back."""
    paths = pictures.folder(tmp_path / "in", len(HOSTILE))
    ingest.ingest(lk, tmp_path / "in", workers=1)
    names = [ids.image_id(p.read_bytes()) for p in paths]
    rows = [
        {"event_id": n[:36], "image_id": n, "timestamp": store.now(), "task": "classification", "origin": "human"}
        | {"label": text}
        for n, text in zip(names, HOSTILE, strict=True)
    ]
    lk.insert("labels", pa.Table.from_pylist(rows, schema=schema.LABELS.arrow()))
    out = tmp_path / "a" / "out"
    export.export(lk, slices.create(lk, "all", where="true"), out, "imagefolder")
    written = [p for p in (tmp_path / "a").rglob("*.png")]
    assert len(written) == len(HOSTILE)
    assert all(p.parent.parent == out for p in written)
    other = make_lake("other")
    ingest.ingest(other, out, workers=1)
    assert {n: t[CLASSIFICATION].label for n, t in labels_of(other).items()} == dict(zip(names, HOSTILE, strict=True))
    say(f"export: {len(HOSTILE)} odd labels as folders, all inside, all read again")


def test_an_export_has_the_labels_of_its_slice(lk: OpenLake, tmp_path: Path) -> None:
    """Not today's."""
    name = ids.image_id(pictures.folder(tmp_path / "in", 1)[0].read_bytes())
    ingest.ingest(lk, tmp_path / "in", workers=1)

    def label(text: str) -> None:
        row = {
            "event_id": text,
            "image_id": name,
            "timestamp": store.now(),
            "task": "classification",
            "origin": "human",
        }
        lk.insert(
            "labels", pa.Table.from_pylist([row | {"origin": "human", "label": text}], schema=schema.LABELS.arrow())
        )

    label("old")
    slice_ = slices.create(lk, "all", where="true")
    label("new")
    export.export(lk, slice_, tmp_path / "out", "imagefolder")
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == ["old"]


REGION = annotation.mask("cat", masks.encode(~MASK), HEIGHT, WIDTH)
MARKED = [
    GroundTruth(DETECTION, boxes=[annotation.box("dog", (1, 2, 3, 4))], incomplete=True),
    GroundTruth(DETECTION, boxes=[], crowd_boxes=[annotation.box("cat", (0, 0, 5, 6))]),
    GroundTruth(SEGMENTATION, masks=[annotation.mask("dog", masks.encode(MASK), HEIGHT, WIDTH)], crowd_masks=[REGION]),
    GroundTruth(CLASSIFICATION, "cat", incomplete=True),
]


@pytest.fixture
def marked(lk: OpenLake, tmp_path: Path) -> tuple[OpenLake, dict[str, GroundTruth]]:
    """Four images with incomplete labels and crowd regions; the slice `s` of all."""
    paths = pictures.folder(tmp_path / "in", 4)
    items = [
        Item(str(path), path=path, read_annotations=lambda w, h, t=truth: annotation.Annotations([t]))  # type: ignore[misc]
        for path, truth in zip(paths, MARKED, strict=True)
    ]
    ingest.ingest_items(lk, items, "/set", workers=1)
    slices.create(lk, "s", where="true")
    return lk, {ids.image_id(path.read_bytes()): truth for path, truth in zip(paths, MARKED, strict=True)}


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet"])
def test_rows_keep_incomplete_labels_and_crowd_regions(
    marked: tuple[OpenLake, dict[str, GroundTruth]], make_lake: MakeLake, tmp_path: Path, format: str
) -> None:
    lk, truths = marked
    report = export.export(lk, slices.get(lk, "s"), tmp_path / "out", format)
    other = make_lake("other")
    assert ingest.ingest(other, tmp_path / "out", workers=1).rejected == []
    contents = slices.contents(lk, slices.get(lk, "s"))
    assert slices.incomplete(lk, contents) == summary.incomplete(lk) == {"classification": 1, "detection": 1}
    assert slices.balance(lk, contents) == [{"label": None, "images": 4}]
    assert labels_of(other) == {name: {truth.task: truth} for name, truth in truths.items()}
    assert (report.images, report.left_out, report.unsaid) == (4, [], {})


def test_other_formats_leave_out_what_would_be_background(
    marked: tuple[OpenLake, dict[str, GroundTruth]], tmp_path: Path
) -> None:
    """An image with an incomplete label is left out where an image without annotations shows nothing."""
    lk, truths = marked
    partly = next(name for name, truth in truths.items() if truth is MARKED[0])
    unsaid = {}
    for format in ("coco", "yolo", "voc", "imagefolder", "label-studio"):
        report = export.export(lk, slices.get(lk, "s"), tmp_path / format, format)
        left_out = [] if format in ("imagefolder", "label-studio") else [partly]
        assert [(one["image_id"], one["reason"]) for one in report.left_out] == [
            (name, "its label for detection is incomplete") for name in left_out
        ]
        unsaid[format] = {k: n for k, n in report.unsaid.items() if k in (marks.INCOMPLETE, marks.CROWDS)}
    both = {marks.INCOMPLETE: 1, marks.CROWDS: 2}
    assert unsaid == {
        "coco": {marks.INCOMPLETE: 1}, "yolo": both, "voc": both, "imagefolder": both | {marks.INCOMPLETE: 2},
        "label-studio": both | {marks.INCOMPLETE: 2},
    }  # fmt: skip
    document = json.loads((tmp_path / "coco" / "annotations.json").read_text())
    name_of = {category["id"]: category["name"] for category in document["categories"]}
    crowds = [(name_of[a["category_id"]], a["bbox"]) for a in document["annotations"] if a["iscrowd"]]
    extent = [annotation.extent(REGION)[key] for key in ("x", "y", "width", "height")]
    assert sorted(crowds) == sorted([("cat", [0, 0, 5, 6]), ("cat", extent)])
