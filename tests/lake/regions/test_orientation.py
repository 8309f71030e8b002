"""EXIF orientations: boxes and masks of the stored pixels are turned to where those pixels are on the upright image."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lake.formats import annotation
from lake.formats.item import ReadOptions
from lake.ingest import ingest, sources
from lake.open_lake import OpenLake
from lake.regions import masks, orientation
from tests.lake.formats import sets


def stored(pixels: np.ndarray, value: int, format: str = "PNG") -> bytes:
    """An image file that stores these pixels and says an orientation."""
    exif = Image.Exif()
    exif[0x0112] = value
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, exif=exif)
    return out.getvalue()


def upright(data: bytes) -> np.ndarray:
    """The pixels as Pillow turns them."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


@settings(max_examples=60)
@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9), st.data())
def test_what_is_drawn_on_the_stored_pixels_is_turned_with_them(
    value: int, width: int, height: int, data: st.DataObject
) -> None:
    """A box and a mask are drawn into the picture; Pillow turns the picture, we turn the box and the mask."""
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    boxed = np.zeros((height, width), np.uint8)
    boxed[top:bottom, left:right] = 255
    turned_box = upright(stored(boxed, value))
    box = annotation.box("cat", (left, top, right - left, bottom - top))
    size = (turned_box.shape[1], turned_box.shape[0])
    assert orientation.stored_size(*size, value) == (width, height)
    found = orientation.turn_box(box, *size, value)
    drawn = np.zeros_like(turned_box)
    x, y = int(found["x"]), int(found["y"])
    drawn[y : y + int(found["height"]), x : x + int(found["width"])] = 255
    assert (drawn == turned_box).all()
    pattern = np.random.default_rng(data.draw(st.integers(0, 2**32))).random((height, width)) < 0.5
    mask = annotation.mask("cat", masks.encode(pattern), height, width)
    turned = orientation.turn_mask(mask, value)
    wanted = upright(stored(pattern.astype(np.uint8) * 255, value)) > 0
    assert (masks.decode(turned["counts"], turned["height"], turned["width"]) == wanted).all()


BOX, POLYGON = [2, 1, 5, 3], [[2, 1, 7, 1, 7, 4, 2, 4]]


def a_set(root: Path, layout: str, value: int) -> Path:
    """An image of 12 x 8 stored pixels, white where the annotation is, with the stored size in the document."""
    pixels = np.zeros((8, 12), np.uint8)
    pixels[1:4, 2:7] = 255
    data = stored(pixels, value)
    if layout == "coco":
        image = {"id": 1, "file_name": "a.png", "width": 12, "height": 8}
        record = {"bbox": BOX, "segmentation": POLYGON}
        return sets.put(root, {"a.png": data, "d.json": sets.coco(record, images=[image])})
    if layout == "voc":
        size = "<size><width>12</width><height>8</height></size>"
        xml = sets.voc(sets.corners(3, 2, 7, 4), size=size)
        return sets.put(root, {"JPEGImages/a.png": data, "Annotations/a.xml": xml})
    if layout == "metadata":
        row = {"file_name": "a.png", "width": 12, "height": 8, "objects": {"bbox": [BOX], "category": ["cat"]}}
        return sets.put(root, {"a.png": data, "metadata.jsonl": json.dumps(row)})
    line = f"0 {4.5 / 12} {2.5 / 8} {5 / 12} {3 / 8}"
    return sets.put(root, {"data.yaml": "names: [cat]", "images/a.png": data, "labels/a.txt": line})


@pytest.mark.parametrize("layout", ["coco", "yolo", "voc", "metadata"])
@pytest.mark.parametrize("value", range(1, 9))
def test_coordinates_of_stored_pixels_are_turned_in_every_format(tmp_path: Path, layout: str, value: int) -> None:
    root = a_set(tmp_path, layout, value)
    (item,) = [i for i in sources.read(root, "auto", ReadOptions(orientation="stored")) if i.read_annotations]
    assert item.path is not None
    wanted = upright(item.path.read_bytes())
    said: Any = item.read_annotations(*wanted.shape[::-1])  # type: ignore[misc]
    assert said.rejected == []
    (truth,) = said.ground_truths
    for box, mask in truth.instances():
        drawn = np.zeros_like(wanted)
        x, y, width, height = (round(box[k]) for k in ("x", "y", "width", "height"))
        drawn[y : y + height, x : x + width] = 255
        assert (drawn == wanted).all()
        if mask is not None:
            assert ((wanted > 0) == masks.decode(mask["counts"], mask["height"], mask["width"])).all()


def test_a_document_with_the_stored_size_is_refused_until_you_say_what_it_means(lk: OpenLake, tmp_path: Path) -> None:
    root = a_set(tmp_path / "set", "coco", 6)
    report = ingest.ingest(lk, root, workers=1)
    (rejected,) = report.rejected
    assert "12 x 8, the upright image is 8 x 12; its EXIF orientation turns it" in rejected["reason"]
    assert "--orientation stored" in rejected["reason"]
    assert lk.dataset("labels").count_rows() == 0
    for choice, corner in (("stored", (4, 2, 3, 5)), ("upright", (2, 1, 5, 3))):
        report = ingest.ingest(lk, root, workers=1, orientation=choice)  # type: ignore[arg-type]
        assert report.rejected == []
        (row,) = lk.sql("SELECT boxes, masks FROM labels_current").to_pylist()
        box = row["boxes"][0] if row["boxes"] else annotation.extent(row["masks"][0])
        assert (box["x"], box["y"], box["width"], box["height"]) == corner


def test_another_size_that_exif_does_not_explain_is_refused_with_any_choice(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.png", "width": 16, "height": 24}
    root = sets.put(tmp_path, {"a.png": None, "d.json": sets.coco({"bbox": BOX}, images=[image])})
    for choice in (None, "stored", "upright"):
        (read,) = sets.of_images(root, options=ReadOptions(orientation=choice))["a.png"]
        assert [reason for _, reason in read.rejected] == ["the document says 16 x 24, the upright image is 24 x 16"]
        assert read.ground_truths == []
