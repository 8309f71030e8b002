"""COCO documents: finds them, and reads each as a world of its own, with its own ids of images and categories."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from lake.formats import splits
from lake.formats.annotation import DETECTION, SEGMENTATION, TASKS
from lake.formats.item import Item, printable
from lake.formats.numbers import identity, whole
from lake.formats.paths import MANIFEST, NamedFiles, document, inside

_HEAD_BYTES = 64 << 10
_KEYS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_RESULT = re.compile(rb'\A\s*\[\s*(\]|\{[^{}]*?"image_id")')
# Where documents lie: in the folder, in its folder `annotations`, and so in the folder of each split.
_PLACES = ("*.json", "annotations/*.json", "*/*.json", "*/annotations/*.json")

Identity = int | str
Record = tuple[str, Mapping[str, Any]]


@dataclass
class CocoImage:
    """An image of a document. `tasks`: those it is labelled for, where the document says so; `unclear`: why nothing can
    be said of it; `checked`: the ids of classes that were looked for, where only some were (LVIS).
    """

    file: str
    width: Any = None
    height: Any = None
    tasks: Sequence[str] | None = None
    label: Any = None
    answer: Mapping[str, Any] | None = None
    checked: set[Identity] | None = None
    unclear: str | None = None
    annotations: list[Record] = field(default_factory=list)
    results: list[Record] = field(default_factory=list)


@dataclass
class CocoDocument:
    """A document. `categories`: name by id, None where two names have the id. `lost`: the tasks of annotations that
    name no image, so that any image may lack one.
    """

    path: Path
    split: str | None = None
    images: dict[Identity, CocoImage] = field(default_factory=dict)
    categories: dict[Identity, str | None] = field(default_factory=dict)
    annotated: bool = False
    empty_task: str = DETECTION
    lost: set[str] = field(default_factory=set)
    rejected: list[Item] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The folder of its data set."""
        return self.path.parent.parent if self.path.parent.name == "annotations" else self.path.parent

    def distinct_images(self) -> list[CocoImage]:
        """Its images, each once: two ids may stand for one file."""
        return list({id(image): image for image in self.images.values()}.values())

    def covers(self, results: Sequence[Any]) -> bool:
        """Whether it has every image of a list of results."""
        return all(isinstance(r, dict) and identity(r.get("image_id")) in self.images for r in results)


def find(path: Path) -> list[Path]:
    """The COCO documents and lists of results at a path, recognised by their first 64 KiB."""
    if path.is_file():
        return [path] if _looks_like_coco(path) else []
    found = {p for place in _PLACES for p in path.glob(place)}
    return [p for p in sorted(found) if p.name != MANIFEST and p.is_file() and _looks_like_coco(p)]


def _looks_like_coco(path: Path) -> bool:
    head = _head(path)
    return bool(_KEYS.search(head) or _RESULT.match(head))


def is_results(path: Path) -> bool:
    return _RESULT.match(_head(path)) is not None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def read_all(path: Path) -> tuple[list[CocoDocument], list[Item]]:
    """The documents at `path`, with the lists of results assigned to them, and what was rejected.

    Raises BadInput if there is none, or if the only one is broken.
    """
    paths = find(path)
    if not paths:
        raise BadInput(f"{path} has no COCO document: no .json with images, annotations and categories")
    root = path
    if path.is_file():
        root = path.parent
        if is_results(path):  # its images are in the documents beside it
            paths = [*(p for p in find(root) if p != path and not is_results(p)), path]
    documents: list[CocoDocument] = []
    result_lists: list[tuple[Path, list[Any]]] = []
    rejected: list[Item] = []
    for file in paths:
        try:
            content = document(file)
            if isinstance(content, list):
                result_lists.append((file, content))
            else:
                documents.append(_document(root, file, content))
        except BadInput as error:
            if len(paths) == 1:
                raise
            rejected.append(Item(printable(file), error=str(error)))
    if result_lists and not documents:
        raise BadInput(f"{result_lists[0][0]} is a list of results, and the document with its images is not beside it")
    for file, results in result_lists:
        try:
            home = _home(documents, file, results)
        except BadInput as error:
            rejected.append(Item(printable(file), error=str(error)))
        else:
            rejected += _assign(home, file, results, "result")
    return documents, [*rejected, *(item for d in documents for item in d.rejected)]


def _home(documents: Sequence[CocoDocument], file: Path, results: Sequence[Any]) -> CocoDocument:
    """The document that a list of results is about. Raises BadInput if that is unclear."""
    if len(documents) == 1:
        return documents[0]
    possible = [d for d in documents if d.covers(results)]
    if len(possible) > 1:
        possible = [d for d in possible if d.path.parent == file.parent]
    if len(possible) != 1:
        raise BadInput("it is unclear which document these results are about: put the list beside that document alone")
    return possible[0]


def _document(root: Path, path: Path, content: Any) -> CocoDocument:
    if not isinstance(content, dict):
        raise BadInput(f"{path} is not a COCO document")
    for name in ("images", "annotations", "categories"):
        if not isinstance(content.get(name, []), list):
            raise BadInput(f"{path}: {name} is not a list")
    annotations = content.get("annotations", [])
    read = CocoDocument(path, splits.of_path(root, path), annotated="annotations" in content)
    _add_categories(read, content.get("categories", []))
    _add_images(read, content.get("images", []))
    drawn = [bool(a.get("segmentation")) for a in annotations if isinstance(a, dict) and "caption" not in a]
    read.empty_task = SEGMENTATION if drawn and all(drawn) else DETECTION
    read.rejected += _assign(read, path, annotations, "annotation")
    return read


def _add_categories(read: CocoDocument, records: Sequence[Any]) -> None:
    for index, record in enumerate(records):
        record = record if isinstance(record, dict) else {}
        key, name = identity(record.get("id")), record.get("name")
        where = printable(f"{read.path}: categories[{index}]")
        if key is None or isinstance(name, bool) or not isinstance(name, str | int | float):
            read.rejected.append(Item(where, error="a category needs id and name"))
        elif read.categories.setdefault(key, str(name)) != str(name):
            read.categories[key] = None
            read.rejected.append(Item(where, error=f"two categories have the id {key!r}; no annotation of it is read"))


def _add_images(read: CocoDocument, records: Sequence[Any]) -> None:
    by_file: dict[str, CocoImage] = {}
    for index, record in enumerate(records):
        where = printable(f"{read.path}: images[{index}]")
        key = identity(record.get("id")) if isinstance(record, dict) else None
        if key is None or not isinstance(record.get("file_name"), str):
            read.rejected.append(Item(where, error="an image needs id and file_name"))
            continue
        image = by_file.setdefault(record["file_name"], _image(record))
        known = read.images.setdefault(key, image)
        if known is not image:
            reason = f"two images have the id {key!r}"
            known.unclear = image.unclear = reason
            read.rejected.append(Item(where, error=reason))


def _image(record: Mapping[str, Any]) -> CocoImage:
    tasks, answer = record.get("tasks"), record.get("answer")
    checked: set[Identity] | None = None
    if "neg_category_ids" in record or "not_exhaustive_category_ids" in record:
        negative = record.get("neg_category_ids")
        checked = {i for c in (negative if isinstance(negative, list) else []) if (i := identity(c)) is not None}
        if record.get("not_exhaustive_category_ids"):
            checked = set()
    return CocoImage(
        str(record["file_name"]),
        record.get("width"),
        record.get("height"),
        [t for t in tasks if t in TASKS] if isinstance(tasks, list) else None,
        record.get("label"),
        answer if isinstance(answer, dict) else None,
        checked,
    )


def _assign(read: CocoDocument, path: Path, records: Sequence[Any], kind: str) -> list[Item]:
    """Gives each record to its image; returns those that have none."""
    rejected = []
    for number, record in enumerate(records):
        where = printable(f"{path}: {kind} {number}")
        key = identity(record.get("image_id")) if isinstance(record, dict) else None
        if key is None:
            rejected.append(Item(where, error="it has no image_id"))
            if kind == "annotation":
                read.lost.add(task_of(record))
        elif key not in read.images:
            rejected.append(Item(where, error=f"no image has the id {key!r}"))
        else:
            image = read.images[key]
            (image.results if kind == "result" else image.annotations).append((where, record))
    return rejected


def task_of(record: Any) -> str:
    """The task of an annotation: segmentation if it has a mask."""
    return SEGMENTATION if isinstance(record, dict) and record.get("segmentation") else DETECTION


def is_crowd(record: Mapping[str, Any]) -> bool:
    crowd = record.get("iscrowd")
    return bool(crowd) if whole(crowd) is None else whole(crowd) != 0


def images_folder(path: Path, names: Sequence[str]) -> Path:
    """The folder of a document's images: its own, or one of those that data sets commonly use."""
    split = re.sub(r"^(instances|image_info|person_keypoints|captions|stuff)_", "", path.stem)
    above = path.parent.parent
    folders = [path.parent, *(path.parent / n for n in ("images", "data", split, f"images/{split}"))]
    if path.parent.name == "annotations":
        folders += [above / split, above / "images" / split, above / "images", above / "data", above]
    for folder in folders:
        for name in names:
            try:
                if inside(folder, name).is_file():
                    return folder
            except BadInput:
                continue
    return folders[1] if folders[1].is_dir() else path.parent


def named_files(read: CocoDocument) -> NamedFiles:
    return NamedFiles(read.root, [image.file for image in read.distinct_images()])
