"""Random data sets: of sound ones, the formats' own readers and ours read the same; of faulty ones, nothing false.

pycocotools and torchvision read COCO and VOC themselves; the forms of YOLO are those that ultralytics documents.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lake.regions import masks
from tests.lake.formats import sets
from tests.lake.formats.sets import HEIGHT, WIDTH

CLASSES = ["cat", "dog", "cow"]


def a_box(rng: random.Random) -> list[int]:
    x, y = rng.randrange(0, WIDTH - 2), rng.randrange(0, HEIGHT - 2)
    return [x, y, rng.randrange(1, WIDTH - x), rng.randrange(1, HEIGHT - y)]


def a_polygon(rng: random.Random) -> list[float]:
    return [round(rng.uniform(0, side), 2) for _ in range(rng.randrange(3, 7)) for side in (WIDTH, HEIGHT)]


# Sound: our readers and theirs agree ----------------------------------------------------------------------------


def check_coco(rng: random.Random, root: Path) -> None:
    from pycocotools.coco import COCO

    drawn = rng.random() < 0.5
    records = []
    for number in range(rng.randrange(5)):
        record = {"id": number + 1, "category_id": rng.randrange(1, 4), "bbox": a_box(rng), "area": 1, "iscrowd": 0}
        records.append(record | ({"segmentation": [a_polygon(rng)]} if drawn else {}))
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    image = {"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
    sets.put(root, {"a.png": None, "d.json": sets.coco(*records, images=[image], categories=categories)})
    theirs = COCO(root / "d.json")
    expected = [theirs.anns[i] for i in theirs.getAnnIds(imgIds=[1])]
    (truth,) = sets.statements(root)["a.png"].values()
    assert not truth.incomplete
    names = {c["id"]: c["name"] for c in theirs.loadCats(theirs.getCatIds())}
    ours = truth.instances()
    assert [(m or b)["label"] for b, m in ours] == [names[e["category_id"]] for e in expected]
    for (box, mask), one in zip(ours, expected, strict=True):
        assert [box["x"], box["y"], box["width"], box["height"]] == one["bbox"]
        assert (mask is None) == (not one.get("segmentation"))
        if mask is not None:
            assert (masks.decode(mask["counts"], HEIGHT, WIDTH) == theirs.annToMask(one)).all()


def check_voc(rng: random.Random, root: Path) -> None:
    from embeddings.embedders import torch_import

    objects = []
    for _ in range(rng.randrange(1, 5)):
        x, y, width, height = a_box(rng)
        objects.append(sets.corners(x + 1, y + 1, x + width, y + height, rng.choice(CLASSES)))
    base = "VOCdevkit/VOC2012"
    files = {f"{base}/JPEGImages/a.jpg": None, f"{base}/Annotations/a.xml": sets.voc(*objects)}
    sets.put(root, files | {f"{base}/ImageSets/Main/train.txt": "a\n"})
    ((_, sheet),) = torch_import.torchvision().datasets.VOCDetection(root, "2012", "train")
    (truth,) = sets.statements(root)[f"{base}/JPEGImages/a.jpg"].values()
    assert [
        {"name": b["label"], "bndbox": [b["x"] + 1, b["y"] + 1, b["x"] + b["width"], b["y"] + b["height"]]}
        for b in truth.boxes or ()
    ] == [
        {"name": o["name"], "bndbox": [float(o["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")]}
        for o in sheet["annotation"]["object"]
    ]


def check_yolo(rng: random.Random, root: Path) -> None:
    """By ultralytics' documentation: class x_center y_center width height, or class x1 y1 x2 y2 ..., as fractions."""
    drawn = rng.random() < 0.5
    rows: list[list[Any]] = []
    for _ in range(rng.randrange(1, 5)):
        x, y, width, height = a_box(rng)
        fractions = [(x + width / 2) / WIDTH, (y + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT]
        outline = [v / (HEIGHT if i % 2 else WIDTH) for i, v in enumerate(a_polygon(rng))]
        rows.append([rng.randrange(3), *(outline if drawn else fractions)])
    lines = "\n".join(" ".join(map(str, row)) for row in rows)
    yaml = f"names: {json.dumps(CLASSES)}\ntask: {'segment' if drawn else 'detect'}\n"
    sets.put(root, {"data.yaml": yaml, "images/a.png": None, "labels/a.txt": lines})
    (truth,) = sets.statements(root)["images/a.png"].values()
    assert [(m or b)["label"] for b, m in truth.instances()] == [CLASSES[row[0]] for row in rows]
    for (box, mask), row in zip(truth.instances(), rows, strict=True):
        if mask is None:
            centre = [(box["x"] + box["width"] / 2) / WIDTH, (box["y"] + box["height"] / 2) / HEIGHT]
            assert np.allclose([*centre, box["width"] / WIDTH, box["height"] / HEIGHT], row[1:])
        else:
            from pycocotools import mask as reference

            points = [[v * (HEIGHT if i % 2 else WIDTH) for i, v in enumerate(row[1:])]]
            theirs = reference.decode(reference.merge(reference.frPyObjects(points, HEIGHT, WIDTH)))
            assert (masks.decode(mask["counts"], HEIGHT, WIDTH) == theirs).all()


def check_imagefolder(rng: random.Random, root: Path) -> None:
    from embeddings.embedders import torch_import

    names = {f"{rng.choice(CLASSES)}/{n}.png": None for n in range(8)} | {"cat/x.png": None, "dog/x.png": None}
    sets.put(root, names)
    theirs = torch_import.torchvision().datasets.ImageFolder(root)
    ours = {name: by_task["classification"].label for name, by_task in sets.statements(root).items()}
    assert ours == {str(Path(p).relative_to(root)): theirs.classes[number] for p, number in theirs.samples}


def check_webdataset(rng: random.Random, root: Path) -> None:
    import io
    import tarfile

    import webdataset

    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "a.tar", "w") as tar:
        for number in range(3):
            row = {"label": rng.choice(CLASSES), "objects": {"bbox": [a_box(rng)], "category": [rng.choice(CLASSES)]}}
            for suffix, data in (("png", sets.PNG), ("json", json.dumps(row).encode())):
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    theirs = [sample["json"] for sample in webdataset.WebDataset(str(root / "a.tar"), shardshuffle=False).decode()]
    ours = [*sets.statements(root).values()]
    assert [t["classification"].label for t in ours] == [row["label"] for row in theirs]
    for truths, row in zip(ours, theirs, strict=True):
        boxes = truths["detection"].boxes or ()
        assert [[b[k] for k in ("x", "y", "width", "height")] for b in boxes] == row["objects"]["bbox"]
        assert [b["label"] for b in boxes] == row["objects"]["category"]


CHECKS: dict[str, Any] = {
    "coco": check_coco,
    "yolo": check_yolo,
    "voc": check_voc,
    "imagefolder": check_imagefolder,
    "webdataset": check_webdataset,
}
quiet = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@quiet
@pytest.mark.parametrize("format", CHECKS)
def test_the_formats_own_readers_agree(format: str, tmp_path: Path) -> None:
    agree(format, 5, tmp_path)


@quiet
@pytest.mark.soak
@pytest.mark.parametrize("format", CHECKS)
def test_the_formats_own_readers_agree_long(format: str, tmp_path: Path, say: Any) -> None:
    agree(format, 1_000, tmp_path)
    say(f"{format}: 1,000 random sound data sets read as its own readers do")


def agree(format: str, times: int, place: Path) -> None:
    for seed in range(times):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            CHECKS[format](random.Random(seed), Path(folder) / "set")
