"""Reads Pascal VOC: per image an XML file of boxes, and palette PNGs in which pixel value i is the XML's i-th object.

Coordinates are 1-based and both ends are inside, as in the development kit: a box from pixel 0 that is 10 wide has
xmin 1 and xmax 10. Fractions are written as such (VOC 2012 has them, too). Objects with pixels in SegmentationObject
are instances of a segmentation, the others of a detection.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from lake.errors import BadInput, UnreadableImage
from lake.formats import annotation
from lake.formats.annotation import (
    DETECTION,
    SEGMENTATION,
    Annotations,
    GroundTruth,
    ModelName,
)
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
_VOID = 255
_MOST_XML_BYTES = 16 << 20
_MOST_MASK_BYTES = 64 << 20
_DEPTH = 32


def folders(path: Path) -> list[Path]:
    """The VOC data sets at a path: every folder with JPEGImages, at most two levels down."""
    candidates = [path, *sorted(path.glob("*/")), *sorted(path.glob("*/*/"))]
    return [p for p in candidates if (p / "JPEGImages").is_dir()]


def read(path: Path, model: ModelName) -> Iterator[Item]:
    roots = folders(path)
    if not roots:
        raise BadInput(f"{path} is not a Pascal VOC data set: it has no folder JPEGImages")
    for root in roots:
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
                yield Item(printable(sheet), error="JPEGImages has no image with this name")


def _names(root: Path) -> Mapping[int, str]:
    """The classes of SegmentationClass: those of `labelmap.txt`, or else VOC's twenty."""
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
    paired: set[int] = set()
    if os.path.lexists(pixels):
        try:
            values = _indices(root, pixels, width, height)
            class_masks = root / "SegmentationClass" / pixels.name
            classes = _indices(root, class_masks, width, height) if os.path.lexists(class_masks) else None
        except (BadInput, OSError) as error:
            annotations.rejected.append((printable(pixels), str(error)))
            values = None
        if values is not None:
            for number in np.unique(values[(values != 0) & (values != _VOID)]).tolist():
                mask = values == number
                known = objects[number - 1] if number <= len(objects) else None
                if known is None and classes is None:
                    annotations.rejected.append(
                        (printable(f"{pixels}: object {number}"), "the XML has no object for it")
                    )
                    continue
                label = known["label"] if known else _majority_class(names, classes[mask])  # type: ignore[index]
                instances.append(annotation.mask(label, masks.encode(mask), height, width))
                boxes.append(known or annotation.extent(instances[-1]))
                paired.add(number - 1)
            truth = GroundTruth(SEGMENTATION, boxes=boxes, masks=instances)
            annotations.ground_truths.append(annotation.without_redundant_boxes(truth))
    unpaired = [b for i, b in enumerate(objects) if b is not None and i not in paired]
    if unpaired or (os.path.lexists(sheet) and not annotations.ground_truths):
        annotations.ground_truths.append(GroundTruth(DETECTION, boxes=unpaired))
    if model.name is not None:
        header = {"model": model.name, "model_version": model.version}
        annotations.predictions = [
            {**header, "boxes": t.boxes, "masks": t.masks} for t in annotations.ground_truths[:1]
        ]
        annotations.ground_truths = []
    return annotations


def _majority_class(names: Mapping[int, str], values: np.ndarray) -> str:
    number = int(np.bincount(values).argmax())
    return names.get(number, str(number))


def _indices(root: Path, path: Path, width: int, height: int) -> np.ndarray:
    from lake.images.decode import open_image

    path = inside(root, str(path.relative_to(root)))
    if not path.is_file() or path.stat().st_size > _MOST_MASK_BYTES:
        raise BadInput(f"it must be a file of at most {_MOST_MASK_BYTES >> 20} MiB")
    image = open_image(path.read_bytes())
    if image.mode not in ("P", "L"):
        raise BadInput(f"object masks must be palette or grey PNGs, this one is {image.mode}")
    if image.size != (width, height):
        raise BadInput(f"the mask is {image.width} x {image.height}, the upright image {width} x {height}")
    try:
        return np.asarray(image)
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        raise UnreadableImage(str(error)) from error


def _objects(root: Path, sheet: Path, annotations: Annotations, width: int, height: int) -> list[dict[str, Any] | None]:
    tree = parse(_sheet(root, sheet))
    size = tree.child("size")
    if size is not None:
        stated = tuple(_number(size, name) for name in ("width", "height"))
        # Some tools write 0 x 0 if they do not know the size.
        if None not in stated and stated not in ((0, 0), (width, height)):
            raise BadInput(f"it says {stated[0]:g} x {stated[1]:g}, the upright image is {width} x {height}")
    objects: list[dict[str, Any] | None] = []
    for number, element in enumerate(n for n in tree.children if n.name == "object"):
        try:
            objects.append(_box(element))
        except BadInput as error:
            objects.append(None)
            annotations.rejected.append((printable(f"{sheet}: object {number + 1}"), str(error)))
    return objects


def _sheet(root: Path, sheet: Path) -> bytes:
    path = inside(root, str(sheet.relative_to(root)))
    if not path.is_file() or path.stat().st_size > _MOST_XML_BYTES:
        raise BadInput(f"it must be a file of at most {_MOST_XML_BYTES >> 20} MiB")
    return path.read_bytes()


def _box(node: XmlElement) -> dict[str, Any]:
    bndbox = node.child("bndbox")
    if bndbox is None:
        raise BadInput("it has no bndbox")
    values = [_number(bndbox, name) for name in ("xmin", "ymin", "xmax", "ymax")]
    if None in values:
        raise BadInput("bndbox needs xmin, ymin, xmax and ymax")
    left, top, right, bottom = (float(v) for v in values if v is not None)
    name, score = node.child("name"), node.child("score") or node.child("confidence")
    label = None if name is None else name.text
    # Where a side is 0, the sums may round to just below it.
    sides = (0.0 if -1e-6 < side < 0 else side for side in (right - left + 1, bottom - top + 1))
    return annotation.box(label, (left - 1, top - 1, *sides), score.text if score else None)


def _number(node: XmlElement, name: str) -> float | None:
    child = node.child(name)
    try:
        return None if child is None else float(child.text)
    except ValueError as error:
        raise BadInput(f"{name} is {child.text[:40]!r}, not a number") from error  # type: ignore[union-attr]


@dataclass
class XmlElement:
    """An XML element: its name, text and child elements."""

    name: str
    text: str = ""
    children: list[XmlElement] = field(default_factory=list)

    def child(self, name: str) -> XmlElement | None:
        return next((c for c in self.children if c.name == name), None)


def parse(data: bytes) -> XmlElement:
    """The root element of an XML document. Raises BadInput for broken XML, a DTD or entities."""
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
        raise BadInput("the XML has a document type declaration; remove it")

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
