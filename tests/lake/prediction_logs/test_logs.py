"""A log on its way into a lake: what it says is in the lake as it was said, or refused by name and place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from lake.errors import BadInput
from lake.formats.item import ReadOptions
from lake.ingest import ingest, sources
from lake.ingest.report import IngestReport
from lake.open_lake import OpenLake
from lake.prediction_logs import log as logs
from lake.prediction_logs import table_rows, text_files
from lake.prediction_logs.log import LogOptions
from lake.prediction_logs.numbers import CLAMPED, COMMA
from search_app.cli.main import main
from tests import pictures
from tests.conftest import MakeLake, Say
from tests.pictures import encoded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures.folder(tmp_path, 3)  # 000.png, 001.png, 002.png: 24 x 16
    return tmp_path


def run(lake: OpenLake, path: Path, **words: Any) -> IngestReport:
    return ingest.ingest(lake, path, log=LogOptions.parsed(**words), workers=1)


def read(path: Path, **words: Any) -> list[tuple[str | None, float | None]]:
    """Label and confidence of each row, read as an ingest does. Raises BadInput for the file or for a row."""
    rows = []
    for item in sources.read(path, "auto", ReadOptions(log=LogOptions.parsed(**words))):
        if item.error is not None:
            raise BadInput(f"{item.source}: {item.error}")
        assert item.row is not None
        assert item.log is not None
        row = item.log.read_row(item.row, {}, lambda path: b"")
        rows.append((row.label, row.confidence))
    return rows


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image,Label,Confidence,Model\n000.png,cat,0.5,m\n", ("cat", 0.5)),
        ("FileName,class,conf\n000.png,cat,0.5\n", ("cat", 0.5)),
        ("img_path;Prediction;Score\n000.png;cat;0,5\n", ("cat", 0.5)),
        ("image\tpred\tprobability\n000.png\tcat\t0.5\n", ("cat", 0.5)),
        ("image|label|confidence\n000.png|cat|0.5\n", ("cat", 0.5)),
        ("sep=;\nimage;label;confidence\n000.png;cat;0.5\n", ("cat", 0.5)),
        ("image, label, confidence\n000.png, cat, 0.5\n", ("cat", 0.5)),
        ("image,label,confidence\n000.png,1.0,0.5\n", ("1", 0.5)),
        (",image,label,,\n0,000.png,cat,,\n", ("cat", None)),
    ],
)
def test_a_csv_is_understood(tmp_path: Path, text: str, expected: tuple[Any, ...]) -> None:
    assert read(write(tmp_path / "log.csv", text)) == [expected]


def test_what_the_caller_names_is_read_so(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "bild:klasse:sicher\n000.png:cat:87%\n")
    words = {"map": ["image=bild", "label=klasse", "confidence=sicher"], "confidence_scale": 100.0}
    assert read(path, separator=":", **words) == [("cat", 0.87)]
    with pytest.raises(BadInput, match=r"has no column 'klase' for label; its columns: bild, klasse, sicher; did you"):
        read(path, separator=":", map=["image=bild", "label=klase"])


def test_two_separators_that_both_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="comma or semicolon may separate the columns of the header 'a,b;c'; name it"):
        read(write(tmp_path / "log.csv", "a,b;c\n1,2;3\n"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_unicode_files_are_read_by_their_marks(tmp_path: Path, suffix: str, encoding: str) -> None:
    row = json.dumps({"image": "000.png", "label": "Größe 😀"}, ensure_ascii=False)
    text = {"csv": "image,label\n000.png,Größe 😀\n", "jsonl": row, "json": f"[{row}]"}[suffix]
    assert read(write(tmp_path / f"log.{suffix}", text, encoding)) == [("Größe 😀", None)]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "csv.gz"])
def test_another_encoding_is_refused_with_its_line_and_read_when_it_is_named(tmp_path: Path, suffix: str) -> None:
    rows = ['{"image": "001.png", "label": "cat"}', '{"image": "000.png", "label": "Größe"}']
    csv_text = "image,label\n000.png,Größe\n"
    text = {"jsonl": "\n".join(rows), "json": f"[{rows[0]},\n{rows[1]}]"}.get(suffix, csv_text)
    path = write(tmp_path / f"log.{suffix}", text, "cp1252")
    if suffix == "csv.gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(BadInput, match=r":2 is not UTF-8: byte 0xf6 in .*--encoding cp1252"):
        read(path)
    assert read(path, encoding="cp1252")[-1] == ("Größe", None)


@pytest.mark.parametrize("suffix", ["csv.gz", "jsonl.gz", "json"])
def test_packed_logs_and_arrays_are_read(tmp_path: Path, suffix: str) -> None:
    rows = [{"image": f"00{n}.png", "label": "cat", "confidence": 0.5} for n in range(3)]
    text = {
        "csv.gz": "image,label,confidence\n" + "".join(f"{r['image']},cat,0.5\n" for r in rows),
        "jsonl.gz": "\n".join(map(json.dumps, rows)),
        "json": json.dumps(rows, indent=2),
    }[suffix]
    path = tmp_path / f"log.{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert read(path) == [("cat", 0.5)] * 3


def test_an_array_of_image_ids_is_a_log_and_no_list_of_coco_results(tmp_path: Path) -> None:
    path = write(tmp_path / "log.json", json.dumps([{"label": "cat", "image_id": "a" * 64}]))
    assert sources.resolve(path, "auto") == "table"
    assert sources.resolve(write(path, '[{"image_id": 7, "category_id": 1, "bbox": [], "score": 1}]'), "auto") == "coco"


def test_the_command_passes_on_what_the_caller_says(
    lk: OpenLake, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(folder / "log.csv", "bild;Größe;gt\n000.png;10;12\n", "cp1252")
    words = ["--map", "image=bild", "--map", "label=Größe", "--truth", "gt", "--encoding", "cp1252", "--separator", ";"]
    assert main(["ingest", str(path), "--lake", lk.uri, "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["predictions_new"] == 1
    assert lk.sql("SELECT label, true_label FROM samples_reviewed").to_pylist() == [{"label": "10", "true_label": "12"}]
    assert main(["ingest", str(folder), "--lake", lk.uri, "--truth", "gt"]) == 2
    assert "are for prediction logs" in capsys.readouterr().err


def test_a_packed_file_that_is_cut_off_or_unpacks_without_end_is_refused_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "FREE_BYTES", 1 << 20)
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"image,label\n000.png,cat\n" * 50)[:-9])
    with pytest.raises(BadInput, match=r"cut\.csv\.gz is broken or cut off"):
        read(tmp_path / "cut.csv.gz")
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"image,label\n" + b"a,b\n" * (1 << 20)))
    with pytest.raises(BadInput, match="unpacks to more than 200 times its size"):
        read(tmp_path / "bomb.csv.gz")


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MOST_ROW", 1 << 20)
    with pytest.raises(BadInput, match=r"l.jsonl:2 has more than 1 MiB in one line"):
        text_files.checked(write(tmp_path / "l.jsonl", "{}\n" + " " * (3 << 20)))


def test_an_array_is_read_to_its_first_broken_row(tmp_path: Path) -> None:
    path = write(tmp_path / "l.json", '[{"a": 1}, 2, {"a": "[,]"}\n, {"a": ], {"a": 5}]')
    *rows, (place, reason) = table_rows.json_array(path)
    assert [row for _, row in rows] == [{"a": 1}, "the row is not a JSON object", {"a": "[,]"}]
    assert place == f"{path}:4"
    assert "broken JSON" in str(reason)
    assert "the rows from here on were not read" in str(reason)


@given(st.lists(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=9), max_size=3), max_size=6))
@settings(max_examples=60)
def test_an_array_is_read_as_json_reads_it(rows: list[dict[str, Any]]) -> None:
    array = table_rows._Array(io.StringIO(json.dumps(rows)))
    found = []
    array.expect("[")
    while array.next() != "]":
        found.append(array.value())
        if array.next() == ",":
            array.expect(",")
    assert found == rows


REFUSED = {
    "im,klasse,sicherheit\n000.png,cat,0.5\n": "no column is the image; its columns: im, klasse, sicherheit",
    "image,klasse,confidence\n000.png,cat,0.5\n": "no column is a prediction .*its columns: image, klasse, confidence",
    "image,camera\n000.png,7\n": "no column is a prediction .*--map label=none",
    "image,label,prediction\n000.png,cat,dog\n": "'label' and 'prediction' could each be the predicted class",
    "image,label,label\n000.png,cat,dog\n": "has the column 'label' twice",
    "i\0m\0": "NUL character; if the file is UTF-16",
    "": "has no header line",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_log_that_is_not_understood_is_refused_whole(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match=REFUSED[text]):
        read(write(tmp_path / "log.csv", text))


def test_a_later_row_does_not_change_what_a_column_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOOK_AHEAD", 1)
    path = tmp_path / "log.jsonl"
    path.write_text('{"image": "000.png", "label": "cat"}\n{"image": "000.png", "label": "cat", "prediction": "dog"}\n')
    items = list(sources.read(path, "table"))
    assert items[0].error is None
    assert "'label' and 'prediction' could each be the predicted class" in str(items[1].error)


def labels(lake: OpenLake) -> list[str]:
    query = "SELECT label FROM labels_current WHERE origin = 'import' ORDER BY label"
    return [str(label) for label in lake.sql(query)["label"].to_pylist()]


def test_a_list_of_images_needs_no_prediction_and_a_truth_adds_labels_alone(lk: OpenLake, folder: Path) -> None:
    run(lk, write(folder / "list.csv", "image,source\n000.png,a\n001.png,b\n"))
    run(lk, write(folder / "more.csv", "image,camera\n002.png,7\n"), map=["label=none"])
    report = run(lk, write(folder / "truth.csv", "filename,class\n000.png,dog\n001.png,cat\n"), truth="class")
    assert (report.labels_new, labels(lk)) == (2, ["cat", "dog"])
    rows = lk.sql("SELECT model, source, metadata FROM samples ORDER BY source").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (None, "002.png", '{"camera": "7"}'), (None, "a", None), (None, "b", None),
    ]  # fmt: skip


def test_a_truth_beside_a_prediction_becomes_a_label(lk: OpenLake, folder: Path) -> None:
    text = "image,label,prediction,model\n000.png,cat,dog,m\n001.png,cat,,m\n002.png,,dog,m\n"
    path = write(folder / "log.csv", text)
    for new in (2, 0):  # the second time adds nothing
        report = run(lk, path, truth="label")
        assert (report.rejected, report.labels_new) == ([], new)
    rows = lk.sql("SELECT model, label, true_label, correct FROM samples_reviewed ORDER BY source").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("m", "dog", "cat", False), (None, None, "cat", None), ("m", "dog", None, None),
    ]  # fmt: skip


def test_what_was_read_otherwise_and_what_is_odd_is_in_the_report(lk: OpenLake, folder: Path) -> None:
    text = (
        "image;label;confidence;gt;time;camera\n000.png;cat;1,00001;x;5;a\n001.png;Cat;0,5;y;20260115;b\n"
        "002.png;cat ;0,5;z;2999-01-01;c\n000.png;cat;0,5;y;2026-01-15;d\n"
    )
    report = run(lk, write(folder / "log.csv", text))
    assert report.rejected == []
    assert report.converted == {CLAMPED: 1, COMMA: 4}
    first, alike = folder / "log.csv", "'Cat' (1 rows), 'cat' (2 rows), 'cat ' (1 rows)"
    assert report.notes == [
        "columns read: gt as truth, time as timestamp",
        "columns kept as metadata: camera",
        f"classes that differ only in case, spaces or Unicode form are kept apart: {alike}",
        f"an image has two true classes; the last one counts; first in {first}:5: 'y' after 'x'",
        f"timestamp is in 1970 in 1 rows, first in {first}:2: 1970-01-01 00:00Z",
        f"timestamp is in the future in 1 rows, first in {first}:4: 2999-01-01 00:00Z",
    ]


def mask(width: int, height: int) -> dict[str, Any]:
    return {"label": "a", "size": [height, width], "counts": [width * height]}


ODD_ROWS: dict[str, tuple[dict[str, Any], str | None]] = {
    "a mask of the image's size": ({"masks": [mask(24, 16)]}, None),
    "turned": ({"masks": [mask(16, 24)]}, "a mask is 16 x 24, the image is 24 x 16"),
    "short runs": ({"masks": [{"size": [16, 24], "counts": [5, 5]}]}, "do not add up"),
    "no runs": ({"masks": [{"size": [16, 24], "counts": "!!!"}]}, "invalid character"),
    "no file": ({"mask": "gone.png"}, "gone.png: No such file"),
    "small file": ({"mask": "small.png"}, "a mask is 3 x 2, the image is 24 x 16"),
    "no mask": ({"mask": "001.png"}, "a mask must be a grey"),
    "half a box": ({"boxes": [{"x1": 1, "y1": 2, "x2": 5, "y2": 9}]}, "a box needs x, y"),
    "numbers as text": ({"boxes": [{"x": "1", "y": 2, "width": 3, "height": 4, "label": "a"}]}, None),
    "a negative box": ({"boxes": [{"x": 1, "y": 2, "width": -3, "height": 4}]}, "not negative"),
    "boxes as text": ({"boxes": "[]"}, None),
    "two labels": ({"label": ["a", "b"]}, "label is .*not text"),
    "a flag": ({"label": True}, "label is True, not text"),
    "numbered scores": ({"scores": [0.2, 0.8]}, None),
    "no score": ({"scores": {"a": 0.5, "b": None}}, "lacks its label or score"),
    "two scores of a class": ({"scores": [["a", 0.5], ["a", 0.25]]}, "a class has two scores"),
    "a task in capitals": ({"task": "Classification", "label": "a"}, None),
    "a task of others": ({"task": "ocr", "label": "a"}, "task is 'ocr'; it must be one of classification, detection"),
    "before it began": ({"label": "a", "latency_ms": -5}, "must not be negative"),
    "a unit": ({"label": "a", "latency_ms": "12ms"}, "not a number"),
    "no object": ({"label": "a", "metadata": [1]}, "metadata is not a JSON object"),
    "another image": ({"label": "a", "image_id": "0" * 64}, "the lake has no image 000"),
    "no image": ({"label": "a", "image": "gone.png"}, "gone.png: No such file"),
    "a percentage": ({"label": "a", "confidence": 87}, "looks like a percentage"),
    "a confidence alone": ({"confidence": 0.5}, "the row has a confidence and no prediction"),
    "a model alone": ({"model": "m"}, "the row has the model 'm' and no prediction"),
    "half a surrogate": ({"label": "a", "operator": "\ud800"}, "half a surrogate pair"),
}


def test_every_odd_row_is_taken_as_meant_or_refused_with_its_reason(lk: OpenLake, folder: Path) -> None:
    (folder / "small.png").write_bytes(encoded(Image.fromarray(np.array([[0, 255, 0]] * 2, np.uint8))))
    rows = [{"image": "000.png", "id": f"{n}"} | row for n, (row, _) in enumerate(ODD_ROWS.values())]
    path = write(folder / "log.jsonl", "\n".join(map(json.dumps, rows)))
    report = run(lk, path)
    refused = {int(r["source"].rpartition(":")[2]) - 1: r["reason"] for r in report.rejected}
    for number, (name, (_, reason)) in enumerate(ODD_ROWS.items()):
        assert (number in refused) == (reason is not None), (name, refused.get(number))
        if reason is not None:
            assert re.search(reason, refused[number]), (name, refused[number])
    assert report.predictions_new == sum(reason is None for _, reason in ODD_ROWS.values())


FAULTS: dict[str, list[Any]] = {
    "confidence": [87, "87%", 4.7, -2, "high", True, "0.5.5"],
    "label": [True, ["cat"], "\ud800", {"a": 1}],
    "timestamp": ["yesterday", "15.01.2026", True, "1e30"],
    "latency_ms": [-1, "12 ms", [3]],
    "task": ["ocr", 7],
    "scores": [{"cat": 7}, "cat", [["a", 0.5], ["a", 0.5]]],
    "boxes": [[{"x": 1}], "no", [{"bbox": [1, 2, 3]}]],
    "metadata": ["{", [1], 5],
    "frame": [1.5, "x", 2**63, 2.0**60],
    "note": ["\udfff", {"deep": "\ud800"}],
}
SOUND: dict[str, st.SearchStrategy[Any]] = {
    "confidence": st.floats(0, 1),
    "label": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
    "timestamp": st.integers(1_000_000_000, 1_700_000_000),
    "latency_ms": st.floats(0, 1e6),
    "frame": st.integers(-(2**63), 2**63 - 1),
    "note": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8) | st.integers(),
}
faulty = st.sampled_from([(name, value) for name, odd in FAULTS.items() for value in odd])
some_rows: st.SearchStrategy[list[tuple[dict[str, Any], Any]]] = st.lists(
    st.tuples(st.fixed_dictionaries({"label": SOUND.pop("label")}, optional=SOUND), st.none() | faulty),
    min_size=20, max_size=60,
)  # fmt: skip


def _as_said(lake: OpenLake, folder: Path, rows: list[tuple[dict[str, Any], Any]], suffix: str, round_: int) -> int:
    """Ingests the rows; asserts that the lake has those without a fault as they are, and that the others are named."""
    model = f"{suffix}{round_}"
    said = [
        {"image": f"00{n % 3}.png", "model": model, "id": f"{n}"} | row | (dict([fault]) if fault else {})
        for n, (row, fault) in enumerate(rows)
    ]
    path = folder / f"log{round_}.{suffix}"
    path.write_text("\n".join(map(json.dumps, said)) if suffix == "jsonl" else json.dumps(said))
    report = run(lake, path)
    refused = {int(r["source"].rpartition(":")[2]) - 1 for r in report.rejected}
    assert refused == {n for n, (_, fault) in enumerate(rows) if fault}, report.rejected
    stored = lake.sql(f"SELECT * FROM predictions WHERE model = '{model}'").to_pylist()
    columns = ("label", "confidence", "latency_ms", "frame")

    def key(row: dict[str, Any], seconds: float | None, note: Any) -> str:
        return repr([*(row.get(name) for name in columns), seconds, note])

    expected = [
        key(row, float(row["timestamp"]) if "timestamp" in row else None, row.get("note"))
        for row, fault in rows
        if not fault
    ]
    found = [
        key(row, row["timestamp"] and row["timestamp"].timestamp(), json.loads(row["metadata"] or "{}").get("note"))
        for row in stored
    ]
    assert sorted(found) == sorted(text.replace("-0.0,", "0.0,") for text in expected)
    return len(refused)


@pytest.mark.parametrize("rounds", [4, pytest.param(150, marks=pytest.mark.soak)])
def test_no_value_is_in_the_lake_that_is_not_in_the_row(
    make_lake: MakeLake, folder: Path, say: Say, rounds: int
) -> None:
    lake = make_lake(columns={"frame": "int"})
    counts = {"rows": 0, "refused": 0, "round": 0}

    @settings(max_examples=rounds, phases=[Phase.generate])
    @given(some_rows, st.sampled_from(["jsonl", "json"]))
    def rows_with_faults(rows: list[tuple[dict[str, Any], Any]], suffix: str) -> None:
        counts["round"] += 1
        counts["rows"] += len(rows)
        counts["refused"] += _as_said(lake, folder, rows, suffix, counts["round"])

    rows_with_faults()
    say(f"prediction logs: {counts['rows']:,} rows with random faults, {counts['refused']:,} refused, each by name")


@pytest.mark.parametrize("values", [[1, 2], [1.0, 2.0], ["1", "2"], ["1.0", "2.0"]])
def test_a_class_is_the_same_in_every_type_and_file(tmp_path: Path, values: list[Any]) -> None:
    images = ["000.png", "001.png"]
    pq.write_table(pa.table({"image": images, "label": values}), tmp_path / "log.parquet")
    with (tmp_path / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *zip(images, values, strict=True)])
    assert read(tmp_path / "log.parquet") == read(tmp_path / "log.csv") == [("1", None), ("2", None)]
