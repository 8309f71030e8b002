"""A small real lake of generated shapes: images, predictions with scores and boxes, some labels."""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

import lake
import lake.ids
from lake.ingest.ingest import ingest

CLASSES = ("circle", "square", "cross")


@dataclass(frozen=True)
class Shapes:
    """Where the files and the lake are, and what was drawn."""

    uri: str
    files: list[Path]
    kinds: list[str]
    ids: list[str]


def drawing(seed: int) -> tuple[bytes, str]:
    """A JPEG of one coloured shape, and its kind. The same seed gives the same bytes."""
    rng = random.Random(seed)
    kind = CLASSES[seed % 3]
    size = rng.choice([(160, 120), (120, 160), (140, 140)])
    image = Image.new("RGB", size, tuple(rng.randrange(20, 90) for _ in range(3)))
    draw, colour = ImageDraw.Draw(image), tuple(rng.randrange(120, 255) for _ in range(3))
    box = (30, 30, 90, 90)
    if kind == "circle":
        draw.ellipse(box, fill=colour)
    elif kind == "square":
        draw.rectangle(box, fill=colour)
    else:
        draw.line(box, fill=colour, width=12)
        draw.line((30, 90, 90, 30), fill=colour, width=12)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue(), kind


def make_shapes(folder: Path, count: int, embedder: str = "efficientnet-lite0") -> Shapes:
    """`count` drawings, answered by a model that is wrong about every tenth, half of them labelled."""
    uri, images, labelled = str(folder / "shapes"), folder / "images", folder / "labelled"
    images.mkdir(parents=True)
    files, kinds, ids, log = [], [], [], []
    for seed in range(count):
        data, kind = drawing(seed)
        file = images / f"shape {seed:03}.jpg"
        file.write_bytes(data)
        answer = CLASSES[(seed + 1) % 3] if seed % 10 == 0 else kind
        log.append(
            {
                "image": file.name,
                "model": "shapes",
                "model_version": "1",
                "label": answer,
                "confidence": 0.5 + seed / (2 * count),
                "scores": {name: 0.9 if name == answer else 0.05 for name in CLASSES},
                "timestamp": f"2026-09-{1 + seed % 20:02}T12:00:00Z",
                "camera": seed % 4,
            }
        )
        if seed % 2 == 0:
            (labelled / kind).mkdir(parents=True, exist_ok=True)
            (labelled / kind / file.name).write_bytes(data)
        files.append(file)
        kinds.append(kind)
        ids.append(lake.ids.image_id(data))
    (images / "log.jsonl").write_text("\n".join(json.dumps(row) for row in log))
    opened = lake.create(uri, embedders=[embedder], columns={"camera": "int"})
    ingest(opened, images / "log.jsonl", workers=1)
    ingest(opened, labelled, "imagefolder", workers=1)
    return Shapes(uri, files, kinds, ids)
