"""What a path on disk stands for, and the items it holds."""

import datetime as dt
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lake.errors import BadInput
from lake.ingest import sources


def tree(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def listed(root: Path, layout: sources.Layout = "auto") -> list[tuple[str, str | None, bool]]:
    """(path below root, label, whether it can be read) of each item."""
    items = [*sources.read(root, layout)]
    labels = {i.source: i.read_annotations(1, 1).ground_truths[0].label for i in items if i.read_annotations}
    return [(os.path.relpath(i.source, root), labels.get(i.source), i.error is None) for i in items]


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        (["a.jpg", "b.jpg"], "folder"),
        (["cat/a.jpg", "dog/b.jpg"], "imagefolder"),
        (["cat/a.jpg", "dog/b.jpg", "classes.txt"], "imagefolder"),
        (["cat/a.jpg", "dog/b.jpg", "c.jpg"], "folder"),
        (["cat/a.jpg"], "folder"),
        (["2024/05/a.jpg", "2025/01/b.jpg"], "folder"),
        (["cat/a.jpg", ".cache/b.jpg"], "folder"),
    ],
)
def test_auto_is_imagefolder_when_all_images_lie_in_two_or_more_class_folders(
    tmp_path: Path, files: list[str], layout: str
) -> None:
    assert sources.resolve(tree(tmp_path, *files), "auto") == layout


@pytest.mark.parametrize("name", ["log.csv", "log.TSV", "log.jsonl", "log.ndjson", "log.parquet"])
def test_auto_is_table_for_a_log(tmp_path: Path, name: str) -> None:
    assert sources.resolve(tree(tmp_path, name) / name, "auto") == "table"


def test_a_single_image_is_a_folder_of_one(tmp_path: Path) -> None:
    (item,) = sources.read(tree(tmp_path, "a.JPG") / "a.JPG", "auto")
    assert item.path == tmp_path / "a.JPG"


@pytest.mark.parametrize(
    ("name", "layout", "reason"),
    [
        ("gone", "auto", "does not exist"),
        ("notes.txt", "auto", "neither a folder, an image, nor"),
        (".", "table", "is a folder; layout table needs"),
        ("a.jpg", "imagefolder", "neither"),
        ("a.jpg", "pile", "layout 'pile' is not one of auto, folder, imagefolder, table"),
    ],
)
def test_a_path_that_cannot_be_that_layout_is_refused(tmp_path: Path, name: str, layout, reason: str) -> None:
    tree(tmp_path, "notes.txt", "a.jpg")
    with pytest.raises(BadInput, match=reason):
        sources.resolve(tmp_path / name, layout)


def test_a_folder_is_read_in_order_without_hidden_and_foreign_files(tmp_path: Path) -> None:
    tree(tmp_path, "b.jpg", "a/z.png", "a/c.webp", ".hidden.jpg", ".git/x.jpg", "notes.txt", "d.heic")
    items = [*sources.read(tmp_path, "folder")]
    assert [(os.path.relpath(i.source, tmp_path), i.error is None) for i in items if i.passed_over is None] == [
        ("b.jpg", True), ("d.heic", False), ("a/c.webp", True), ("a/z.png", True),
    ]  # fmt: skip
    assert {os.path.relpath(i.source, tmp_path): i.passed_over for i in items if i.passed_over is not None} == {
        ".git": "hidden", ".hidden.jpg": "hidden", "notes.txt": "not an image (.txt)",
    }  # fmt: skip


def test_an_imagefolders_labels_are_its_folders(tmp_path: Path) -> None:
    tree(tmp_path, "dog/b.jpg", "cat/a.jpg", "cat/deep/c.jpg", "stray.jpg")
    assert listed(tmp_path, "imagefolder") == [
        ("cat/a.jpg", "cat", True), ("cat/deep/c.jpg", "cat", True), ("dog/b.jpg", "dog", True),
        ("stray.jpg", None, False),
    ]  # fmt: skip


def test_a_link_that_leads_back_up_is_followed_once(tmp_path: Path) -> None:
    tree(tmp_path, "in/a.jpg")
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    assert [name for name, _, _ in listed(tmp_path, "folder")].count("in/a.jpg") <= 1


def test_a_name_that_is_not_utf8_is_shown_with_replacements(tmp_path: Path) -> None:
    name = b"gr\xfcn.png".decode("utf-8", "surrogateescape")
    (tmp_path / name).write_bytes(b"x")
    (item,) = sources.read(tmp_path, "folder")
    assert item.source == f"{tmp_path}/gr�n.png"
    assert item.path is not None
    assert item.path.read_bytes() == b"x"


def rows(path: Path) -> list[tuple[str, object]]:
    """(line number, row or reason) of each item."""
    return [(i.source.rpartition(":")[2], i.row if i.error is None else i.error) for i in sources.read(path, "table")]


def test_a_csvs_row_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('image,label\na.png,cat\n\nb.png,"two\nlines"\nc.png\n', encoding="utf-8-sig")
    assert rows(tmp_path / "l.csv") == [
        ("2", {"image": "a.png", "label": "cat"}),
        ("5", {"image": "b.png", "label": "two\nlines"}),
        ("6", "the line has 1 of 2 values"),
    ]


def test_a_tsv_is_split_at_tabs(tmp_path: Path) -> None:
    (tmp_path / "l.tsv").write_text("image\tlabel\na.png\tcat, black\n")
    assert rows(tmp_path / "l.tsv") == [("2", {"image": "a.png", "label": "cat, black"})]


def test_a_stray_quote_costs_its_own_row_only(tmp_path: Path) -> None:
    """Read as CSV says, it would make one field of the rest of the file."""
    (tmp_path / "l.csv").write_text('image,label\na.png,cat\nb.png,"dog\nc.png,cow\nd.png,"hen"\n')
    first, second, *rest = rows(tmp_path / "l.csv")
    assert first == ("2", {"image": "a.png", "label": "cat"})
    assert second[0] == "3"
    assert "broken CSV" in str(second[1])
    assert rest == [("4", {"image": "c.png", "label": "cow"}), ("5", {"image": "d.png", "label": "hen"})]


def test_too_many_values_are_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,label\na.png,cat,0.9\nb.png,dog\n")
    assert rows(tmp_path / "l.csv") == [("2", "more values than columns"), ("3", {"image": "b.png", "label": "dog"})]


def test_a_csv_without_a_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("")
    with pytest.raises(BadInput, match="has no header line"):
        rows(tmp_path / "l.csv")


def test_a_broken_json_line_costs_itself_only(tmp_path: Path) -> None:
    deep = "[" * 100_000
    lines = ['{"image": "a.png"}', '{"image": ', "", "[1]", '{"x": ' + "1" * 5000 + "}", deep, '{"image": "b.png"}']
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    read = rows(tmp_path / "l.jsonl")
    assert [line for line, _ in read] == ["1", "2", "4", "5", "6", "7"]
    assert read[0][1] == {"image": "a.png"}
    assert read[-1][1] == {"image": "b.png"}
    assert read[2][1] == "the line is not a JSON object"
    assert all("broken JSON" in str(read[i][1]) for i in (1, 3, 4))


def test_a_parquets_rows_are_counted(tmp_path: Path) -> None:
    table = pa.table({"image": ["a.png", "b.png"], "scores": [{"cat": 0.5}, None]})
    pq.write_table(table, tmp_path / "l.parquet")
    assert rows(tmp_path / "l.parquet") == [
        ("1", {"image": "a.png", "scores": {"cat": 0.5}}),
        ("2", {"image": "b.png", "scores": None}),
    ]


def test_a_value_that_python_cannot_hold_costs_its_row_only(tmp_path: Path) -> None:
    """A timestamp of the year 33658."""
    when = pa.array([0, 10**12], pa.timestamp("s"))
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "timestamp": when}), tmp_path / "l.parquet")
    first, second = rows(tmp_path / "l.parquet")
    assert isinstance(first[1], dict)
    assert second[0] == "2"
    assert isinstance(second[1], str)


def test_nanoseconds_are_read_as_microseconds(tmp_path: Path) -> None:
    when = pa.array([1_714_996_800_000_001_999], pa.timestamp("ns", tz="UTC"))
    pq.write_table(pa.table({"image": ["a.png"], "timestamp": when}), tmp_path / "l.parquet")
    ((_, row),) = rows(tmp_path / "l.parquet")
    assert row == {"image": "a.png", "timestamp": dt.datetime(2024, 5, 6, 12, 0, 0, 1, tzinfo=dt.UTC)}


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(BadInput, match="not a readable Parquet file"):
        rows(tmp_path / "l.parquet")


def test_a_log_in_utf_16_is_read(tmp_path: Path) -> None:
    """What spreadsheets save as "Unicode text"."""
    (tmp_path / "log.tsv").write_bytes("image\tlabel\na.png\tkäse\n".encode("utf-16"))
    assert [item.row for item in sources.read(tmp_path / "log.tsv", "auto")] == [{"image": "a.png", "label": "käse"}]


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may list everything, so the refusal comes from scandir itself."""
    import os

    (tmp_path / "open").mkdir()
    (tmp_path / "shut").mkdir()
    listed = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refusing)
    errors = [(item.source, item.error) for item in sources.read(tmp_path, "folder")]
    assert errors == [(str(tmp_path / "shut"), "Permission denied")]
