"""Small data sets on disk for tests of readers, and what their readers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lake.formats.annotation import Annotations, GroundTruth
from lake.formats.item import ReadOptions
from lake.ingest import sources
from tests import pictures

WIDTH, HEIGHT = 24, 16
PNG = pictures.encoded(pictures.noise(1, WIDTH, HEIGHT), "PNG")


def put(root: Path, files: dict[str, Any]) -> Path:
    """Writes files: pictures where the content is None, text, or JSON."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if content is None or isinstance(content, bytes):
            file.write_bytes(content or PNG)
        else:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def coco(*annotations: dict[str, Any], images: Any = None, categories: Any = None) -> dict[str, Any]:
    """A document of one image, a.png, with the id 1, and a class cat with the id 1."""
    return {
        "images": [{"id": 1, "file_name": "a.png"}] if images is None else images,
        "categories": [{"id": 1, "name": "cat"}] if categories is None else categories,
        "annotations": [{"image_id": 1, "category_id": 1, **a} for a in annotations],
    }


def voc(*objects: str, size: str = "") -> str:
    """An XML of VOC with these objects."""
    return f"<annotation>{size}{''.join(f'<object>{o}</object>' for o in objects)}</annotation>"


def corners(xmin: Any, ymin: Any, xmax: Any, ymax: Any, name: str = "cat", more: str = "") -> str:
    """An object of VOC."""
    sides = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
    inside = "".join(f"<{k}>{v}</{k}>" for k, v in sides.items())
    return f"<name>{name}</name>{more}<bndbox>{inside}</bndbox>"


def of_images(
    root: Path, layout: Any = "auto", options: ReadOptions | None = None, size: tuple[int, int] = (WIDTH, HEIGHT)
) -> dict[str, list[Annotations]]:
    """By the path of an image below `root` what each document says of it, in order."""
    said: dict[str, list[Annotations]] = {}
    for item in sources.read(root, sources.resolve(root, layout), options):
        if item.read_annotations is not None:
            name = str(item.path.relative_to(root)) if item.path else item.source.rpartition(":")[2]
            said.setdefault(name, []).append(item.read_annotations(*size))
    return said


def statements(root: Path, layout: Any = "auto") -> dict[str, dict[str, GroundTruth]]:
    """By image and task the last ground truth that says something, or that was read whole."""
    return {
        name: {
            truth.task: truth
            for one in said
            for truth in one.statements()
            if truth.says_something() or not truth.incomplete
        }
        for name, said in of_images(root, layout).items()
    }


def said(root: Path, layout: Any = "auto") -> dict[str, list[tuple[Any, ...]]]:
    """Statements in short: by image (task, classes or label, complete?)."""
    return {
        name: [(task, t.label or _classes(t), not t.incomplete) for task, t in sorted(by_task.items())]
        for name, by_task in statements(root, layout).items()
    }


def _classes(truth: GroundTruth) -> list[Any]:
    return [i["label"] for i in (truth.boxes if truth.task == "detection" else truth.masks) or ()]


def reasons(root: Path, layout: Any = "auto") -> list[str]:
    """Every reason for which something was refused, of files and of annotations."""
    refused = [item.error for item in sources.read(root, sources.resolve(root, layout)) if item.error]
    return refused + [r for said in of_images(root, layout).values() for one in said for _, r in one.rejected]


def converted(root: Path, layout: Any = "auto") -> list[str]:
    return [c for said in of_images(root, layout).values() for one in said for _, c in one.converted]
