"""Random data sets with random faults: what is stated is what their sound instances say, and no more.

Each fault spoils one instance. Its image then has the sound ones, marked incomplete, or no label if there are none; the
refusal names a place. An image without a fault is complete.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lake.formats import sets
from tests.lake.formats.sets import HEIGHT, WIDTH

Instance = tuple[str, list[int]]
Fault = Callable[[Any], Any]
NAN, INFINITE = float("nan"), float("inf")


def replaced(key: str, value: Any) -> Fault:
    return lambda record: {**record, key: value}


COCO: dict[str, Fault] = {
    "category unknown": replaced("category_id", 99),
    "category null": replaced("category_id", None),
    "category list": replaced("category_id", [1]),
    "category true": replaced("category_id", True),
    "category half": replaced("category_id", 1.5),
    "category of two names": replaced("category_id", 7),
    "category without a name": replaced("category_id", 8),
    "bbox missing": replaced("bbox", None),
    "bbox empty": replaced("bbox", []),
    "bbox of three": replaced("bbox", [1, 2, 3]),
    "bbox text": replaced("bbox", "1 2 3 4"),
    "bbox object": replaced("bbox", {"x": 1}),
    "bbox NaN": replaced("bbox", [1, NAN, 3, 4]),
    "bbox infinite": replaced("bbox", [1, 2, INFINITE, 4]),
    "bbox word": replaced("bbox", [1, 2, "three", 4]),
    "bbox null number": replaced("bbox", [1, None, 3, 4]),
    "bbox true": replaced("bbox", [1, True, 3, 4]),
    "bbox reversed": replaced("bbox", [5, 5, -3, 4]),
    "bbox negative height": replaced("bbox", [5, 5, 3, -4]),
    "score above 1": replaced("score", 87),
    "score word": replaced("score", "high"),
    "polygon of two points": replaced("segmentation", [[1, 2, 3, 4]]),
    "polygon flat": replaced("segmentation", [1, 2, 3, 4, 5, 6]),
    "polygon NaN": replaced("segmentation", [[1, 2, NAN, 4, 5, 6]]),
    "polygon far outside": replaced("segmentation", [[1e9, 2, 3, 4, 5, 6]]),
    "mask of another size": replaced("segmentation", {"size": [3, 3], "counts": [9]}),
    "mask too short": replaced("segmentation", {"size": [HEIGHT, WIDTH], "counts": [9]}),
    "mask of odd text": replaced("segmentation", {"size": [HEIGHT, WIDTH], "counts": "~~"}),
    "mask of fractions": replaced("segmentation", {"size": [HEIGHT, WIDTH], "counts": [0.5]}),
    "image_id null": replaced("image_id", None),
    "image_id list": replaced("image_id", [1]),
    "no object": lambda record: 7,
}


def word(position: int, text: str) -> Fault:
    return lambda line: " ".join(text if i == position else w for i, w in enumerate(line.split()))


YOLO: dict[str, Fault] = {
    "class unknown": word(0, "99"),
    "class negative": word(0, "-1"),
    "class half": word(0, "0.5"),
    "class word": word(0, "cat"),
    "class NaN": word(0, "nan"),
    "x 1.04": word(1, "1.04"),
    "y -0.2": word(2, "-0.2"),
    "width in pixels": word(3, "120"),
    "height NaN": word(4, "nan"),
    "y infinite": word(2, "inf"),
    "x with a comma": word(1, "0,5"),
    "width with an underscore": word(3, "1_0"),
    "height word": word(4, "tall"),
    "a number too few": lambda line: line.rpartition(" ")[0],
    "class only": lambda line: line.split()[0],
    "score above 1": lambda line: f"{line} 87",
    "commas": lambda line: line.replace(" ", ","),
}


def element(name: str, text: str | None) -> Fault:
    """The XML's object with another text of an element, or without it."""

    def change(xml: str) -> str:
        before, _, rest = xml.partition(f"<{name}>")
        after = rest.partition(f"</{name}>")[2]
        return before + after if text is None else f"{before}<{name}>{text}</{name}>{after}"

    return change


VOC: dict[str, Fault] = {
    "no name": element("name", None),
    "no bndbox": element("bndbox", None),
    "no xmin": element("xmin", None),
    "no ymax": element("ymax", None),
    "xmin empty": element("xmin", ""),
    "ymin word": element("ymin", "top"),
    "xmax NaN": element("xmax", "nan"),
    "ymax infinite": element("ymax", "inf"),
    "xmax left of xmin": element("xmax", "-5"),
    "ymax above ymin": element("ymax", "-5"),
    "turned box": lambda xml: xml.replace("bndbox", "robndbox"),
    "score above 1": lambda xml: f"{xml}<score>7</score>",
}
METADATA: dict[str, Fault] = {
    "class list": lambda i: (["cat"], i[1]),
    "class true": lambda i: (True, i[1]),
    "class NaN": lambda i: (NAN, i[1]),
    "bbox null": lambda i: (i[0], None),
    "bbox number": lambda i: (i[0], 7),
    "bbox of three": lambda i: (i[0], [1, 2, 3]),
    "bbox word": lambda i: (i[0], [1, 2, "x", 4]),
    "bbox NaN": lambda i: (i[0], [1, NAN, 3, 4]),
    "bbox infinite": lambda i: (i[0], [1, 2, 3, INFINITE]),
    "bbox negative": lambda i: (i[0], [1, 2, 3, -4]),
    "bbox true": lambda i: (i[0], [1, True, 3, 4]),
}
FAULTS = {"coco": COCO, "yolo": YOLO, "voc": VOC, "metadata": METADATA}


def instances(rng: random.Random, least: int = 0) -> list[Instance]:
    found = []
    for _ in range(rng.randrange(least, 4)):
        x, y = rng.randrange(0, WIDTH - 2), rng.randrange(0, HEIGHT - 2)
        found.append((rng.choice(["cat", "dog"]), [x, y, rng.randrange(1, WIDTH - x), rng.randrange(1, HEIGHT - y)]))
    return found


def written(format: str, said: dict[str, list[Instance]], faults: dict[str, tuple[int, Fault]]) -> dict[str, Any]:
    """The files of a data set of these images; `faults`: which instance of an image is spoilt, and how."""

    def spoilt(name: str, values: list[Any]) -> list[Any]:
        if name in faults:
            position, fault = faults[name]
            values[position] = fault(values[position])
        return values

    numbers = {"cat": 0, "dog": 1}
    if format == "coco":
        names = [*said]
        records = [
            record
            for number, name in enumerate(names)
            for record in spoilt(name, [_record(number, numbers[c], box) for c, box in said[name]])
        ]
        categories = [{"id": i, "name": n} for i, n in ((0, "cat"), (1, "dog"), (7, "a"), (7, "b"), (8, None))]
        images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
        document = {"images": images, "categories": categories, "annotations": records}
        return {"d.json": document, **dict.fromkeys(names)}
    files: dict[str, Any] = {"data.yaml": "names: [cat, dog]"} if format == "yolo" else {}
    rows = []
    for name, found in said.items():
        stem = name.removesuffix(".png")
        if format == "yolo":
            lines = [f"{numbers[c]} {_fractions(box)}" for c, box in found]
            files |= {f"images/{name}": None, f"labels/{stem}.txt": "\n".join(spoilt(name, lines))}
        elif format == "voc":
            objects = [sets.corners(x + 1, y + 1, x + w, y + h, c) for c, (x, y, w, h) in found]
            files |= {f"JPEGImages/{name}": None, f"Annotations/{stem}.xml": sets.voc(*spoilt(name, objects))}
        else:
            pairs = spoilt(name, [*found])
            objects_of = {"bbox": [box for _, box in pairs], "category": [c for c, _ in pairs]}
            rows.append(json.dumps({"file_name": name, "objects": objects_of}))
            files |= {name: None}
    return files | ({"metadata.jsonl": "\n".join(rows)} if format == "metadata" else {})


def _record(image: int, category: int, box: list[int]) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box}


def _fractions(box: list[int]) -> str:
    x, y, width, height = box
    return f"{(x + width / 2) / WIDTH} {(y + height / 2) / HEIGHT} {width / WIDTH} {height / HEIGHT}"


def check(format: str, seed: int, place: Path) -> str:
    """One data set of three images, one of them with a fault. Returns the fault."""
    rng = random.Random(seed)
    kind = [*FAULTS[format]][seed % len(FAULTS[format])]
    said = {"a.png": instances(rng, least=1), "b.png": instances(rng, least=1), "c.png": instances(rng)}
    position = rng.randrange(len(said["b.png"]))
    with tempfile.TemporaryDirectory(dir=place) as folder:
        fault = {"b.png": (position, FAULTS[format][kind])}
        root = sets.put(Path(folder) / "set", written(format, said, fault))
        found = {Path(name).name: by_task for name, by_task in sets.statements(root).items()}
        reasons = sets.reasons(root)
    # An annotation that names no image may be one of any image.
    lost = kind.startswith(("image_id", "no object"))
    for name, wanted in said.items():
        sound = [i for n, i in enumerate(wanted) if name != "b.png" or n != position]
        complete = name != "b.png" and not lost
        truths = found.get(name, {})
        assert {*truths} == ({"detection"} if sound or complete else set()), (kind, name, truths)
        for truth in truths.values():
            stated = [(b["label"], [round(b[k], 6) for k in ("x", "y", "width", "height")]) for b in truth.boxes or ()]
            assert (stated, truth.incomplete) == (sound, not complete), (kind, name)
    assert reasons, kind
    return kind


def test_no_fault_makes_a_statement(tmp_path: Path) -> None:
    """Every kind of fault once at least."""
    for format, kinds in FAULTS.items():
        for seed in range(len(kinds)):
            check(format, seed, tmp_path)


@pytest.mark.soak
def test_no_fault_makes_a_statement_long(tmp_path: Path, say: Any) -> None:
    kinds = {(format, check(format, seed, tmp_path)) for format in FAULTS for seed in range(5_000)}
    say(f"20,000 data sets with faults of {len(kinds)} kinds: no statement that is not in the documents")
