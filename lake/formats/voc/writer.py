"""Writes Pascal VOC: XML files of boxes, and palette PNGs of objects and classes.

Images are named .jpg whatever their format: readers append that suffix to the names in ImageSets, and decoders look at
the contents.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, ExportSample, GroundTruth
from lake.formats.export_files import ExportPart, WholeExport
from lake.regions import masks

_BASE = "VOCdevkit/VOC2012"
_VOID = 255
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    for sample in samples:
        stem, width, height = sample.image.image_id, sample.image.width, sample.image.height
        part.file(f"{_BASE}/JPEGImages/{stem}.jpg", sample.image.data)
        truths = sample.ground_truths
        part.leave_out("class of an image", CLASSIFICATION in truths)
        if DETECTION not in truths and SEGMENTATION not in truths:
            continue
        objects: list[Mapping[str, Any]] = []
        if SEGMENTATION in truths:
            objects, values = _painted(part, truths[SEGMENTATION], width, height)
            part.file(f"{_BASE}/SegmentationObject/{stem}.png", _png(values))
            if len(part.plan.classes) < _VOID:
                number_of = {name: i for i, name in enumerate(part.plan.classes, start=1)}
                class_masks = np.array([0, *(number_of[b["label"] or ""] for b in objects)], np.uint8)
                part.file(f"{_BASE}/SegmentationClass/{stem}.png", _png(class_masks[values]))
            part.line("segmented", stem)
        detected = truths[DETECTION].boxes or () if DETECTION in truths else ()
        part.leave_out(
            "an empty detection label, beside a segmentation",
            len(truths.keys() & {DETECTION, SEGMENTATION}) == 2 and not detected,
        )
        objects += [b for b in detected if _fits_xml(part, b)]
        part.leave_out("score of a label", sum(b["score"] is not None for b in objects))
        for truth in truths.values():
            part.leave_out(f"class of a whole image's {truth.task}", truth.task != CLASSIFICATION and bool(truth.label))
        sheet = _xml(stem, width, height, objects, SEGMENTATION in truths)
        part.file(f"{_BASE}/Annotations/{stem}.xml", sheet.encode())
        part.line("boxed", stem)


def _fits_xml(part: ExportPart, box: Mapping[str, Any]) -> bool:
    if _NOT_XML.search(box["label"] or ""):
        part.leave_out("an instance whose class has characters that XML does not allow")
        return False
    return True


def _painted(
    part: ExportPart, truth: GroundTruth, width: int, height: int
) -> tuple[list[Mapping[str, Any]], np.ndarray]:
    """The objects with visible pixels, and the map of their numbers from 1; an earlier one covers a later one."""
    values = np.zeros((height, width), np.uint8)
    objects: list[Mapping[str, Any]] = []
    for box, mask in truth.instances():
        if mask is None or not _fits_xml(part, {"label": mask["label"]}):
            continue
        if (mask["width"], mask["height"]) != (width, height):
            part.leave_out("a mask whose size differs from its image's")
            continue
        mine = masks.decode(mask["counts"], height, width)
        free = mine & (values == 0)
        if not free.any() or len(objects) == _VOID - 1:
            part.leave_out("a mask that is empty, hidden by others, or beyond the 254th of its image")
            continue
        part.leave_out("a mask partly hidden by others", bool((mine & ~free).any()))
        objects.append({**box, "label": mask["label"], "score": mask["score"]})
        values[free] = len(objects)
    return objects, values


def _png(values: np.ndarray) -> bytes:
    from PIL import Image

    image = Image.fromarray(values).convert("L")
    image.putpalette(_palette())
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _palette() -> list[int]:
    """The colours of the VOC development kit (VOClabelcolormap.m)."""
    colours = []
    for number in range(256):
        rgb, rest = [0, 0, 0], number
        for bit in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colours += rgb
    return colours


def _xml(stem: str, width: int, height: int, objects: Sequence[Mapping[str, Any]], segmented: bool) -> str:
    lines = [
        "<annotation>",
        "<folder>VOC2012</folder>",
        f"<filename>{stem}.jpg</filename>",
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
        f"<segmented>{int(segmented)}</segmented>",
    ]
    for box in objects:
        name = escape(box["label"] or "", {"\r": "&#13;"})
        ends = (box["x"] + 1, box["y"] + 1, box["x"] + box["width"], box["y"] + box["height"])
        corners = "".join(
            f"<{tag}>{_plain(v)}</{tag}>" for tag, v in zip(("xmin", "ymin", "xmax", "ymax"), ends, strict=True)
        )
        lines.append(
            f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
            f"<bndbox>{corners}</bndbox></object>"
        )
    return "\n".join([*lines, "</annotation>", ""])


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def finish(whole: WholeExport) -> None:
    for folder, name in (("Main", "boxed"), ("Segmentation", "segmented")):
        whole.text(f"{_BASE}/ImageSets/{folder}/train.txt", iter(whole.lines(name)))
    colours = _palette()
    if len(whole.plan.classes) < _VOID:
        rows = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
        for i, name in enumerate(whole.plan.classes, start=1):
            rgb = ",".join(map(str, colours[3 * i : 3 * i + 3]))
            rows.append(f"{' '.join(name.replace(':', ' ').split())}:{rgb}::")
        whole.text(f"{_BASE}/labelmap.txt", iter(rows))
