"""All images of a source have one white point, found at its first ingest or declared; a change shows everywhere."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embeddings.backfill.backfill import backfill
from embeddings.embedders.embedder import record_of
from lake.errors import BadInput
from lake.images import decode
from lake.images.levels import Levels
from lake.ingest import ingest, white_points
from lake.open_lake import OpenLake
from search_app.cli import main
from tests import pictures
from tests.conftest import MakeLake
from tests.embeddings.colour import MeanColour
from tests.embeddings.conftest import announced
from tests.lake.images.test_levels import tiff

GREY = np.asarray(pictures.scene(3, 60, 40).convert("L"))


def write(folder: Path, name: str, values: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(pictures.encoded(Image.fromarray(values)))


def levels(lk: OpenLake) -> dict[str, tuple[float, float, str]]:
    """File name -> black, white and where they are from."""
    rows = lk.sql("SELECT source, black, white, white_from FROM images").to_pylist()
    return {Path(row["source"]).name: (row["black"], row["white"], row["white_from"]) for row in rows}


def thumbnail(lk: OpenLake, name: str) -> np.ndarray:
    (row,) = lk.sql(f"SELECT image_id FROM images WHERE source LIKE '%{name}'").to_pylist()
    data = lk.thumbnail(row["image_id"])
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)


def test_a_source_has_one_white_point_fixed_at_its_first_ingest(lk: OpenLake, tmp_path: Path) -> None:
    """A dark image is as dark as in the 8-bit picture: the others of its source say what white is."""
    folder = tmp_path / "in"
    dark = GREY.astype(np.uint16) // 8
    write(folder, "a dark.png", dark)
    write(folder, "b 8-bit.png", GREY)
    for n in range(3):
        write(folder, f"c{n}.png", GREY.astype(np.uint16) * 16 + n)
    report = ingest.ingest(lk, folder, workers=1)
    assert any("in uint16 images that do not say so themselves, 4095 is shown as white" in n for n in report.notes)
    source = f"source {folder}"
    assert levels(lk) == {
        "a dark.png": (0, 4095, source), "b 8-bit.png": (None, None, None),
        **{f"c{n}.png": (0, 4095, source) for n in range(3)},
    }  # fmt: skip
    assert np.abs(thumbnail(lk, "c0.png") - GREY).mean() < 3
    assert thumbnail(lk, "a dark.png").max() < 4
    # What comes later has the same, although its own values say otherwise.
    write(folder, "d bright.png", GREY.astype(np.uint16) * 200)
    report = ingest.ingest(lk, folder, workers=1)
    assert (report.images_new, report.images_known, report.notes) == (1, 5, [])
    assert levels(lk)["d bright.png"] == (0, 4095, source)
    # Another source has its own.
    write(tmp_path / "other", "e.png", GREY.astype(np.uint16) * 201)
    ingest.ingest(lk, tmp_path / "other", workers=1)
    assert levels(lk)["e.png"] == (0, 65535, f"source {tmp_path / 'other'}")


def test_integers_and_floats_of_a_source_have_their_own(lk: OpenLake, tmp_path: Path) -> None:
    write(tmp_path, "a.png", GREY.astype(np.uint16) * 16)
    (tmp_path / "b.tif").write_bytes(tiff((GREY / 255).astype(np.float32)))
    (tmp_path / "c.tif").write_bytes(tiff((GREY / 255).astype(np.float32) / 9))
    (tmp_path / "d.tif").write_bytes(tiff(GREY.astype(np.float32), least=-5.0, greatest=300.0))
    ingest.ingest(lk, tmp_path, workers=1)
    source = f"source {tmp_path}"
    expected = {
        "a.png": (0, 4095, source),
        "b.tif": (0, 1, source),
        "c.tif": (0, 1, source),
        "d.tif": (-5, 300, "file"),
    }
    assert levels(lk) == expected


def test_a_declared_white_point_changes_pictures_and_removes_vectors(
    make_lake: MakeLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(announced(tmp_path)))
    lk = make_lake("declared", embedders=["mean-colour"])
    folder = tmp_path / "in"
    write(folder, "8.png", GREY)
    write(folder, "12.png", GREY.astype(np.uint16) * 16)
    ingest.ingest(lk, folder, workers=1)
    assert backfill(lk, record_of(lk, None), MeanColour(), workers=1).embedded == 2

    def run(*words: str) -> dict[str, Any]:
        assert main.main(["ingest", str(folder), "--lake", lk.uri, "--json", *words]) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    assert run("--white-point", "4095")["notes"] == []  # nothing looks different
    assert levels(lk)["12.png"] == (0, 4095, f"declared {folder}")
    (note,) = run("--white-point", "0..8190")["notes"]
    assert note.startswith("1 images that the lake had have another black or white now; their thumbnails were made")
    assert levels(lk) == {"8.png": (None, None, None), "12.png": (0, 8190, f"declared {folder}")}
    assert np.abs(thumbnail(lk, "12.png") - GREY // 2).mean() < 3
    assert lk.sql("SELECT count(*) AS n FROM samples WHERE emb_mean_colour IS NULL").to_pylist() == [{"n": 1}]
    assert backfill(lk, record_of(lk, None), MeanColour(), workers=1).embedded == 1
    # It holds for what comes later, until it is declared anew or found again.
    write(folder, "later.png", GREY.astype(np.uint16) * 15)
    assert run()["images_new"] == 1
    assert levels(lk)["later.png"] == (0, 8190, f"declared {folder}")
    run("--white-point", "auto")
    assert {row[:2] for name, row in levels(lk).items() if name != "8.png"} == {(0, 4095)}
    stored = next(i for i in lk.images(lk.sql("SELECT image_id FROM images")["image_id"].to_pylist()) if i.levels)
    assert stored.levels == Levels(0, 4095)


def test_an_image_stored_before_there_were_white_points_gets_one(lk: OpenLake, tmp_path: Path) -> None:
    write(tmp_path, "old.png", GREY.astype(np.uint16) * 16)
    ingest.ingest(lk, tmp_path, workers=1)
    nothing = {"pixel_type": "null", "black": "null", "white": "null", "white_from": "null"}
    lk.dataset("images").update({name: f"cast({value} as {'double' if name in ('black', 'white') else 'string'})" for name, value in nothing.items()})  # fmt: skip  # noqa: E501
    assert levels(lk)["old.png"] == (None, None, None)
    ingest.ingest(lk, tmp_path, workers=1)
    assert levels(lk)["old.png"] == (0, 4095, f"source {tmp_path}")


@pytest.mark.parametrize(
    ("text", "value"), [("auto", "auto"), ("4095", Levels(0, 4095)), ("-5..1e3", Levels(-5, 1000))]
)
def test_a_white_point_is_a_number_or_two(text: str, value: white_points.WhitePoint) -> None:
    assert white_points.parse(text) == value


@pytest.mark.parametrize("text", ["", "white", "..", "5..5", "9..1", "nan", "inf", "0..1e30"])
def test_another_white_point_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--white-point"):
        white_points.parse(text)


def test_groups_are_held_back_in_order_and_only_until_levels_are_known(
    lk: OpenLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(white_points, "SAMPLE_IMAGES", 2)
    flat, deep = pictures.encoded(Image.fromarray(GREY)), pictures.encoded(Image.fromarray(GREY.astype(np.uint16) * 16))
    source = white_points.SourceLevels(lk, "x", None, decode.MAX_MEGAPIXELS, 1)
    read: list[int] = []

    def groups() -> object:
        for number, group in enumerate([[flat], [flat, deep], [flat], [deep], [deep], [flat]]):
            read.append(number)
            yield group

    seen = []
    for group in source.settled(groups(), lambda data: data):  # type: ignore[arg-type]
        seen.append((len(read), group, source.declared is not None))
    assert [(count, declared) for count, _, declared in seen] == [
        (1, False), (4, True), (4, True), (4, True), (5, True), (6, True),
    ]  # fmt: skip
    assert [group for _, group, _ in seen] == [[flat], [flat, deep], [flat], [deep], [deep], [flat]]
