"""Pascal VOC: an XML file of boxes an image, and palette PNGs in which pixel value i is the i-th object of the XML.

Coordinates are 1-based with both ends inside, as the development kit and its readers have them: a box from pixel 0, 10
wide, is xmin 1, xmax 10. Fractions are written as such (VOC 2012 itself has them). Objects that have pixels in
SegmentationObject are instances of a segmentation, the others of a detection. Images are called .jpg whatever they are:
readers put that suffix to the names in ImageSets, and decoders go by the contents.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape

import numpy as np

from lake.errors import BadInput, UnreadableImage
from lake.formats import annotation
from lake.formats.annotation import (
    CLASSIFICATION,
    DETECTION,
    SEGMENTATION,
    Annotations,
    ExportSample,
    GroundTruth,
    ModelName,
)
from lake.formats.export_files import ExportPart, WholeExport
from lake.formats.item import IMAGE_SUFFIXES, Item, printable
from lake.formats.paths import inside
from lake.regions import masks

CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
_BASE = "VOCdevkit/VOC2012"
_VOID = 255
_MOST_XML_BYTES = 16 << 20
_MOST_MASK_BYTES = 64 << 20
_DEPTH = 32
_UNSAYABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


# Reading ---------------------------------------------------------------------------------------------------


def folders(path: Path) -> list[Path]:
    """The VOC data sets at a path: every folder, down to two levels, with JPEGImages."""
    places = [path, *sorted(path.glob("*/")), *sorted(path.glob("*/*/"))]
    return [p for p in places if (p / "JPEGImages").is_dir()]


def read(path: Path, model: ModelName) -> Iterator[Item]:
    found = folders(path)
    if not found:
        raise BadInput(f"{path} is no Pascal VOC data set: it has no folder JPEGImages")
    for root in found:
        names = _names(root)
        stems = set()
        for file in sorted((root / "JPEGImages").iterdir()):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                stems.add(file.stem)
                try:
                    inside(root, f"JPEGImages/{file.name}")
                except BadInput as error:
                    yield Item(printable(file), error=str(error))
                else:
                    yield Item(
                        printable(file),
                        path=file,
                        read_annotations=partial(_annotations, root, file.stem, names, model),
                    )
        for sheet in sorted((root / "Annotations").glob("*.xml")):
            if sheet.stem not in stems:
                yield Item(printable(sheet), error="JPEGImages has no image of this name")


def _names(root: Path) -> Mapping[int, str]:
    """The classes of SegmentationClass: `labelmap.txt` where there is one, else VOC's twenty."""
    try:
        lines = inside(root, "labelmap.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, BadInput, UnicodeDecodeError):
        return dict(enumerate(CLASSES, start=1))
    names = [line.split(":")[0] for line in lines if line.strip() and not line.startswith("#")]
    return {i: name for i, name in enumerate(names) if i}


def _annotations(
    root: Path, stem: str, names: Mapping[int, str], model: ModelName, width: int, height: int
) -> Annotations:
    annotations = Annotations(annotator="voc")
    sheet, pixels = root / "Annotations" / f"{stem}.xml", root / "SegmentationObject" / f"{stem}.png"
    objects: list[dict[str, Any] | None] = []
    if os.path.lexists(sheet):
        try:
            objects = _objects(root, sheet, annotations, width, height)
        except BadInput as error:
            annotations.rejected.append((printable(sheet), str(error)))
            return annotations
    instances: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    taken: set[int] = set()
    if os.path.lexists(pixels):
        try:
            values = _indices(root, pixels, width, height)
            kinds = root / "SegmentationClass" / pixels.name
            classes = _indices(root, kinds, width, height) if os.path.lexists(kinds) else None
        except (BadInput, OSError) as error:
            annotations.rejected.append((printable(pixels), str(error)))
            values = None
        if values is not None:
            for number in np.unique(values[(values != 0) & (values != _VOID)]).tolist():
                mask = values == number
                given = objects[number - 1] if number <= len(objects) else None
                if given is None and classes is None:
                    annotations.rejected.append(
                        (printable(f"{pixels}: object {number}"), "the XML has no object for it")
                    )
                    continue
                label = given["label"] if given else _commonest(names, classes[mask])  # type: ignore[index]
                instances.append(annotation.mask(label, masks.encode(mask), height, width))
                boxes.append(given or annotation.extent(instances[-1]))
                taken.add(number - 1)
            truth = GroundTruth(SEGMENTATION, boxes=boxes, masks=instances)
            annotations.ground_truths.append(annotation.without_redundant_boxes(truth))
    rest = [b for i, b in enumerate(objects) if b is not None and i not in taken]
    if rest or (os.path.lexists(sheet) and not annotations.ground_truths):
        annotations.ground_truths.append(GroundTruth(DETECTION, boxes=rest))
    if model.name is not None:
        header = {"model": model.name, "model_version": model.version}
        annotations.predictions = [
            {**header, "boxes": t.boxes, "masks": t.masks} for t in annotations.ground_truths[:1]
        ]
        annotations.ground_truths = []
    return annotations


def _commonest(names: Mapping[int, str], values: np.ndarray) -> str:
    number = int(np.bincount(values).argmax())
    return names.get(number, str(number))


def _indices(root: Path, path: Path, width: int, height: int) -> np.ndarray:
    from lake.images.decode import open_image

    path = inside(root, str(path.relative_to(root)))
    if not path.is_file() or path.stat().st_size > _MOST_MASK_BYTES:
        raise BadInput(f"no file of at most {_MOST_MASK_BYTES >> 20} MiB")
    image = open_image(path.read_bytes())
    if image.mode not in ("P", "L"):
        raise BadInput(f"object masks are palette or grey PNGs, this is {image.mode}")
    if image.size != (width, height):
        raise BadInput(f"the mask is {image.width} x {image.height}, the upright picture {width} x {height}")
    try:
        return np.asarray(image)
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        raise UnreadableImage(str(error)) from error


def _objects(root: Path, sheet: Path, annotations: Annotations, width: int, height: int) -> list[dict[str, Any] | None]:
    tree = parse(_sheet(root, sheet))
    size = tree.child("size")
    if size is not None:
        claimed = tuple(_number(size, name) for name in ("width", "height"))
        # Some tools write 0 x 0 for "not known".
        if None not in claimed and claimed not in ((0, 0), (width, height)):
            raise BadInput(f"it says {claimed[0]:g} x {claimed[1]:g}, the upright picture is {width} x {height}")
    found: list[dict[str, Any] | None] = []
    for number, node in enumerate(n for n in tree.children if n.name == "object"):
        try:
            found.append(_box(node))
        except BadInput as error:
            found.append(None)
            annotations.rejected.append((printable(f"{sheet}: object {number + 1}"), str(error)))
    return found


def _sheet(root: Path, sheet: Path) -> bytes:
    path = inside(root, str(sheet.relative_to(root)))
    if not path.is_file() or path.stat().st_size > _MOST_XML_BYTES:
        raise BadInput(f"no file of at most {_MOST_XML_BYTES >> 20} MiB")
    return path.read_bytes()


def _box(node: XmlElement) -> dict[str, Any]:
    corner = node.child("bndbox")
    if corner is None:
        raise BadInput("it has no bndbox")
    values = [_number(corner, name) for name in ("xmin", "ymin", "xmax", "ymax")]
    if None in values:
        raise BadInput("bndbox needs xmin, ymin, xmax and ymax")
    left, top, right, bottom = (float(v) for v in values if v is not None)
    name, score = node.child("name"), node.child("score") or node.child("confidence")
    label = None if name is None else name.text
    return annotation.box(label, (left - 1, top - 1, right - left + 1, bottom - top + 1), score.text if score else None)


def _number(node: XmlElement, name: str) -> float | None:
    found = node.child(name)
    try:
        return None if found is None else float(found.text)
    except ValueError as error:
        raise BadInput(f"{name} is {found.text[:40]!r}, not a number") from error  # type: ignore[union-attr]


@dataclass
class XmlElement:
    """An XML element: its name, the text in it, and the elements in it."""

    name: str
    text: str = ""
    children: list[XmlElement] = field(default_factory=list)

    def child(self, name: str) -> XmlElement | None:
        return next((c for c in self.children if c.name == name), None)


def parse(data: bytes) -> XmlElement:
    """The root element of an XML document. Raises BadInput for broken XML and for any with a DTD or entities."""
    top = XmlElement("")
    stack = [top]

    def start(name: str, attributes: Any) -> None:
        if len(stack) > _DEPTH:
            raise BadInput(f"the XML is nested deeper than {_DEPTH} levels")
        node = XmlElement(name)
        stack[-1].children.append(node)
        stack.append(node)

    def characters(text: str) -> None:
        stack[-1].text += text

    def refuse(*_: Any) -> Any:
        raise BadInput("the XML has a document type declaration: entities are not read, remove it")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: stack.pop()
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise BadInput(f"broken XML: {error}") from error
    return top.children[0]


# Writing ---------------------------------------------------------------------------------------------------


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
                kinds = np.array([0, *(number_of[b["label"] or ""] for b in objects)], np.uint8)
                part.file(f"{_BASE}/SegmentationClass/{stem}.png", _png(kinds[values]))
            part.line("segmented", stem)
        detected = truths[DETECTION].boxes or () if DETECTION in truths else ()
        part.leave_out(
            "that nothing was detected, beside a segmentation",
            len(truths.keys() & {DETECTION, SEGMENTATION}) == 2 and not detected,
        )
        objects += [b for b in detected if _sayable(part, b)]
        part.leave_out("score of a label", sum(b["score"] is not None for b in objects))
        for truth in truths.values():
            part.leave_out(f"class of a whole image's {truth.task}", truth.task != CLASSIFICATION and bool(truth.label))
        sheet = _xml(stem, width, height, objects, SEGMENTATION in truths)
        part.file(f"{_BASE}/Annotations/{stem}.xml", sheet.encode())
        part.line("boxed", stem)


def _sayable(part: ExportPart, box: Mapping[str, Any]) -> bool:
    if _UNSAYABLE.search(box["label"] or ""):
        part.leave_out("an instance whose class has characters that XML cannot say")
        return False
    return True


def _painted(
    part: ExportPart, truth: GroundTruth, width: int, height: int
) -> tuple[list[Mapping[str, Any]], np.ndarray]:
    """The objects that have pixels, and their numbers from 1 where they are; earlier ones lie above later ones."""
    values = np.zeros((height, width), np.uint8)
    objects: list[Mapping[str, Any]] = []
    for box, mask in truth.instances():
        if mask is None or not _sayable(part, {"label": mask["label"]}):
            continue
        if (mask["width"], mask["height"]) != (width, height):
            part.leave_out("a mask of another size than its picture")
            continue
        mine = masks.decode(mask["counts"], height, width)
        free = mine & (values == 0)
        if not free.any() or len(objects) == _VOID - 1:
            part.leave_out("a mask that is empty, hidden by others, or beyond 254 in its picture")
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
