"""Reads Pascal VOC: per image an XML file of boxes, and palette PNGs in which pixel value i is the XML's i-th object.

Coordinates are 1-based and both ends are inside, as in the development kit: a box from pixel 0 that is 10 wide has
xmin 1 and xmax 10. Fractions are written as such (VOC 2012 has them, too). The XML files lie in `Annotations`, or
beside the images. Objects with pixels in SegmentationObject are instances of a segmentation; where some have none, the
XML's boxes are a detection, too. Pixels of value 255 are no background: they are kept as a crowd region.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lake.errors import BadInput, UnreadableImage
from lake.formats import annotation, image_files, splits
from lake.formats.annotation import DETECTION, SEGMENTATION, Annotations, GroundTruth
from lake.formats.item import Item, ReadOptions, printable
from lake.formats.numbers import number
from lake.formats.paths import inside, manifest
from lake.formats.turned_images import check_size
from lake.formats.voc.xml_elements import XmlElement, parse
from lake.regions import masks

CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
VOID = 255
DIFFICULT = "a difficult object is kept as an instance; that it is difficult is not"
VOID_KEPT = "pixels of value 255 (void) are kept as a crowd region: no instance, no background"
CLASS_MASK = "SegmentationClass without SegmentationObject is not read: it does not tell instances apart"
_MOST_XML_BYTES = 16 << 20
_MOST_MASK_BYTES = 64 << 20
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class VocFolder:
    """A data set: `root` with folders of images and of XML files, which may be the same.

    `own`: an export of lakeloop, in which boxes of instances without pixels are the detection. `split_of`: by the stem
    of an image. `names`: the classes of SegmentationClass by number.
    """

    root: Path
    images: Path
    sheets: Path
    options: ReadOptions
    own: bool
    names: Mapping[int, str]
    split_of: Mapping[str, str]
    split: str | None = None


def folders(path: Path) -> list[tuple[Path, Path, Path]]:
    """Root, images and XML files of the data sets at a path: at most two levels down.

    They are `JPEGImages` and `Annotations`, `images` and `annotations`, or one folder that has both.
    """
    if path.is_file():
        return []
    found: list[tuple[Path, Path, Path]] = []
    for root in [path, *sorted(path.glob("*/")), *sorted(path.glob("*/*/"))]:
        if any(root in taken for taken in found):
            continue
        if (root / "JPEGImages").is_dir():
            found.append((root, root / "JPEGImages", root / "Annotations"))
        elif _begins_with_sheet(root / "annotations") and (root / "images").is_dir():
            found.append((root, root / "images", root / "annotations"))
        elif _begins_with_sheet(root):
            found.append((root, root, root))
    return found


def _begins_with_sheet(folder: Path) -> bool:
    """Whether the first XML file of a folder is an annotation of VOC."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        first = min((e.path for e in entries if e.name.lower().endswith(".xml") and e.is_file()), default=None)
    if first is None:
        return False
    with open(first, "rb") as file:
        head = file.read(4096)
    return b"<annotation" in head and (b"<object>" in head or b"<filename>" in head or b"<size>" in head)


def read(path: Path, options: ReadOptions) -> Iterator[Item]:
    roots = folders(path)
    if not roots:
        raise BadInput(
            f"{path} is not a Pascal VOC data set: it has no folder JPEGImages, and no XML beside its images"
        )
    own = bool(manifest(path))
    for root, images, sheets in roots:
        split = None if own or root == path else splits.of_folder(root.name)
        data = VocFolder(root, images, sheets, options, own, _names(root), {} if own else _splits(root), split)
        yield from _items(data)


def _items(data: VocFolder) -> Iterator[Item]:
    stems = set()
    for file in sorted(data.images.iterdir()):
        if file.is_dir() or (data.images == data.sheets and file.suffix.lower() == ".xml"):
            continue
        item = image_files.of_file(file)
        if item.path is None:
            yield item
            continue
        stems.add(file.stem)
        try:
            inside(data.root, str(file.relative_to(data.root)))
        except BadInput as error:
            yield Item(item.source, error=str(error))
        else:
            yield Item(item.source, path=file, read_annotations=partial(_annotations, data, file))
    for sheet in sorted(data.sheets.glob("*.xml")):
        if sheet.stem not in stems:
            yield Item(printable(sheet), error=f"{data.images.name} has no image with this name")


def _names(root: Path) -> Mapping[int, str]:
    """The classes of SegmentationClass: those of `labelmap.txt`, or else VOC's twenty."""
    try:
        lines = inside(root, "labelmap.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, BadInput, UnicodeDecodeError):
        return dict(enumerate(CLASSES, start=1))
    names = [line.split(":")[0] for line in lines if line.strip() and not line.startswith("#")]
    return {i: name for i, name in enumerate(names) if i}


def _splits(root: Path) -> dict[str, str]:
    """Split by stem, from `ImageSets`; an image in two splits has none."""
    found: dict[str, set[str]] = {}
    for split in _SPLITS:
        for file in sorted(root.glob(f"ImageSets/*/{split}.txt")):
            try:
                lines = inside(root, str(file.relative_to(root))).read_text(encoding="utf-8").splitlines()
            except (OSError, BadInput, UnicodeDecodeError):
                continue
            for line in lines:
                if line.split():
                    found.setdefault(line.split()[0], set()).add(split)
    return {stem: min(of_stem) for stem, of_stem in found.items() if len(of_stem) == 1}


def _annotations(data: VocFolder, file: Path, width: int, height: int) -> Annotations:
    annotations = Annotations(annotator="voc", source=os.path.abspath(data.root))
    split = data.split_of.get(file.stem, data.split)
    if split is not None:
        annotations.metadata["split"] = split
    sheet = data.sheets / f"{file.stem}.xml"
    objects: list[dict[str, Any] | None] = []
    has_sheet = os.path.lexists(sheet)
    if has_sheet:
        try:
            objects = _objects(data, sheet, file, annotations, width, height)
        except BadInput as error:
            annotations.rejected.append((printable(sheet), str(error)))
            annotations.incomplete |= {DETECTION, SEGMENTATION}
            return annotations
    boxes = [box for box in objects if box is not None]
    paired = _add_segmentation(data, file.stem, objects, annotations, width, height)
    unpaired = [box for i, box in enumerate(objects) if box is not None and i not in paired]
    drawn = any(truth.task == SEGMENTATION for truth in annotations.ground_truths)
    if has_sheet and (unpaired or not drawn):
        annotations.ground_truths.append(GroundTruth(DETECTION, boxes=unpaired if data.own else boxes))
    model = data.options.model
    if model.name is not None:
        if annotations.incomplete:
            reason = "the model's prediction is left out, since a part of it was refused"
            annotations.rejected.append((printable(sheet), reason))
        else:
            header = {"model": model.name, "model_version": model.version}
            truths = annotations.ground_truths[:1]
            annotations.predictions = [{**header, "boxes": t.boxes, "masks": t.masks} for t in truths]
        annotations.ground_truths, annotations.incomplete = [], set()
    return annotations


def _add_segmentation(
    data: VocFolder,
    stem: str,
    objects: list[dict[str, Any] | None],
    annotations: Annotations,
    width: int,
    height: int,
) -> set[int]:
    """Adds the masks of SegmentationObject. Returns the indices of the objects that have one."""
    pixels, class_masks = (data.root / f / f"{stem}.png" for f in ("SegmentationObject", "SegmentationClass"))
    if not os.path.lexists(pixels):
        if os.path.lexists(class_masks):
            annotations.converted.append((printable(class_masks), CLASS_MASK))
        return set()
    try:
        values = _indices(data.root, pixels, width, height)
        classes = _indices(data.root, class_masks, width, height) if os.path.lexists(class_masks) else None
    except (BadInput, OSError) as error:
        annotations.rejected.append((printable(pixels), str(error)))
        annotations.incomplete.add(SEGMENTATION)
        return set()
    instances: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    paired: set[int] = set()
    for value in np.unique(values[(values != 0) & (values != VOID)]).tolist():
        drawn = values == value
        known = objects[value - 1] if value <= len(objects) else None
        try:
            label = known["label"] if known else _majority_class(data.names, classes, drawn)
        except BadInput as error:
            annotations.rejected.append((printable(f"{pixels}: object {value}"), str(error)))
            annotations.incomplete.add(SEGMENTATION)
            continue
        instances.append(annotation.mask(label, masks.encode(drawn), height, width))
        boxes.append(known or annotation.extent(instances[-1]))
        paired.add(value - 1)
    crowds = None
    if (values == VOID).any():
        crowds = [annotation.mask(None, masks.encode(values == VOID), height, width)]
        annotations.converted.append((printable(pixels), VOID_KEPT))
    truth = GroundTruth(SEGMENTATION, boxes=boxes, masks=instances, crowd_masks=crowds)
    annotations.ground_truths.append(annotation.without_redundant_boxes(truth))
    return paired


def _majority_class(names: Mapping[int, str], classes: np.ndarray | None, drawn: np.ndarray) -> str:
    if classes is None:
        raise BadInput("the XML has no object for it")
    value = int(np.bincount(classes[drawn]).argmax())
    if value in (0, VOID):
        raise BadInput(f"the XML has no object for it, and SegmentationClass has {value} there, which is no class")
    return names.get(value, str(value))


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


def _objects(
    data: VocFolder, sheet: Path, image: Path, annotations: Annotations, width: int, height: int
) -> list[dict[str, Any] | None]:
    """The boxes of the XML's objects, None for those that were rejected. Raises BadInput."""
    path = inside(data.root, str(sheet.relative_to(data.root)))
    if not path.is_file() or path.stat().st_size > _MOST_XML_BYTES:
        raise BadInput(f"it must be a file of at most {_MOST_XML_BYTES >> 20} MiB")
    tree = parse(path.read_bytes())
    if tree.name != "annotation":
        raise BadInput(f"its root is <{tree.name[:40]}>, not <annotation>")
    if not any(n.name == "object" for n in tree.children) and tree.has_below("bndbox"):
        raise BadInput("it has a bndbox, but not in an <object> right below <annotation>")
    size = tree.child("size")
    if size is not None:
        stated = [None if (side := size.child(name)) is None else side.text for name in ("width", "height")]
        # Some tools write 0 x 0 if they do not know the size.
        check_size((stated[0], stated[1]), width, height, image, data.options.orientation)
    objects: list[dict[str, Any] | None] = []
    for position, element in enumerate((n for n in tree.children if n.name == "object"), start=1):
        where = printable(f"{sheet}: object {position}")
        try:
            objects.append(read_box(element, data.own))
        except BadInput as error:
            objects.append(None)
            annotations.rejected.append((where, str(error)))
            annotations.incomplete.add(DETECTION)
        else:
            difficult = element.child("difficult")
            if difficult is not None and difficult.text.strip() == "1":
                annotations.converted.append((where, DIFFICULT))
    return objects


def read_box(node: XmlElement, own: bool = False) -> dict[str, Any]:
    """The box of an `object`. `own`: of an export of lakeloop, in which xmax of a box without width is xmin - 1.

    Raises BadInput.
    """
    name, bndbox, score = node.child("name"), node.child("bndbox"), node.child("score") or node.child("confidence")
    if bndbox is None:
        raise BadInput("it has no bndbox")
    if name is None:
        raise BadInput("it has no name")
    corner = {}
    for side in ("xmin", "ymin", "xmax", "ymax"):
        element = bndbox.child(side)
        if element is None:
            raise BadInput("bndbox needs xmin, ymin, xmax and ymax")
        corner[side] = number(side, element.text)
    for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
        if corner[high] < corner[low] - (1 + 1e-6 if own else 0):
            raise BadInput(f"{high} {corner[high]:g} is less than {low} {corner[low]:g}: the box is reversed")
    # Where a side is 0, the sums may round to just below it.
    written = score.text.strip() if score is not None else ""
    sides = (max(0.0, corner[f"{axis}max"] - corner[f"{axis}min"] + 1) for axis in "xy")
    corners = (corner["xmin"] - 1, corner["ymin"] - 1, *sides)
    return annotation.box(name.text, corners, written or None)
