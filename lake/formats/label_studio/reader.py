"""Reads the finished annotations of a Label Studio project, from its export "JSON".

Regions are in percent of the image's size (labelstud.io/guide/predictions). Nothing here knows the lake.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, TASKS, Annotations, GroundTruth
from lake.formats.instances import Instances
from lake.formats.paths import document
from lake.regions import polygons

_IMAGE_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_REGIONS = {"rectanglelabels": DETECTION, "polygonlabels": SEGMENTATION}
# Regions that lakeloop cannot read: without them, what is said of the image is incomplete.
_REFUSED = ("brushlabels", "brush", "bitmasklabels", "bitmask", "ellipselabels", "ellipse", "rectangle", "polygon")
SEVERAL_CLASSES = "an image has one class here; the others are read"
TURNED = "a turned rectangle is kept as a polygon and its enclosing box"


@dataclass(frozen=True)
class FinishedAnnotation:
    """One annotation that a person finished. `source`: its position in the file; `id` and `at`: Label Studio's id and
    time, None if the file has none; `tasks`: what the person was asked to label, or () if the file does not say.
    """

    source: str
    image_id: str
    annotator: str
    id: str | None
    at: dt.datetime | None
    tasks: tuple[str, ...]
    results: Sequence[Any]

    def comment(self) -> str | None:
        """What the person wrote into text areas, a line each."""
        lines: list[str] = []
        for result in self.results:
            if isinstance(result, dict) and result.get("type") == "textarea" and isinstance(result.get("value"), dict):
                text = result["value"].get("text")
                lines += [line for line in (text if isinstance(text, list) else [text]) if isinstance(line, str)]
        return "\n".join(lines) or None

    def annotations(self, width: int, height: int) -> Annotations:
        """What it says of an upright image of this size. A result that cannot be read is rejected by itself.

        Raises BadInput if it says nothing at all.
        """
        results = _Results(self.source, width, height)
        for number, result in enumerate(self.results):
            results.add(f"{self.source}.result[{number}]", result)
        annotations = results.annotations(self.tasks)
        if not annotations.ground_truths and not annotations.rejected:
            if CLASSIFICATION in self.tasks:
                raise BadInput("no class was chosen")
            raise BadInput("it has no regions, and data.asked does not say which task was asked for")
        return annotations


@dataclass(frozen=True)
class RejectedAnnotation:
    """A task or an annotation that cannot be read, and why."""

    source: str
    reason: str


class _Results:
    """The results of one annotation, read one by one."""

    def __init__(self, source: str, width: int, height: int) -> None:
        self._source = source
        self._width, self._height = width, height
        self._said = Annotations(annotator="label-studio")
        self._choices: list[str] = []
        self._instances = Instances(height, width)
        self._boxed = False

    def add(self, source: str, result: Any) -> None:
        try:
            kind, value = _get(result, "type", str), _get(result, "value", dict)
            if kind == "choices":
                self._choices += self._names(value, kind)
            elif kind in _REGIONS:
                self._add_region(source, kind, result, value)
            elif kind in _REFUSED:
                self._instances.refused.add(SEGMENTATION)
                raise BadInput(f"{kind} is not supported; these are: choices, {', '.join(_REGIONS)}")
            elif kind != "textarea":
                self._said.converted.append((source, f"{kind[:40]} is not kept"))
        except BadInput as error:
            kind = result.get("type") if isinstance(result, dict) else None
            if kind == "choices":
                self._said.incomplete.add(CLASSIFICATION)
            elif kind in _REGIONS or not isinstance(kind, str):
                self._instances.refused.add(_REGIONS.get(str(kind), DETECTION))
            self._said.rejected.append((source, str(error)))

    def annotations(self, tasks: Sequence[str]) -> Annotations:
        """What all of them say. `tasks`: those that were asked for, which an annotation without regions answers."""
        said = self._said
        classes = list(dict.fromkeys(self._choices))
        if len(classes) > 1:
            reason = f"{len(classes)} classes, {', '.join(map(repr, classes))[:80]}: {SEVERAL_CLASSES}"
            said.rejected.append((self._source, reason))
            said.incomplete.add(CLASSIFICATION)
        elif classes and CLASSIFICATION not in said.incomplete:
            said.ground_truths.append(GroundTruth(CLASSIFICATION, classes[0]))
        regions = Annotations()
        self._instances.state(regions, [task for task in tasks if task != CLASSIFICATION])
        boxes = [box for box, _ in self._instances.found]
        if boxes and (self._boxed or DETECTION in tasks):
            others = [truth for truth in regions.ground_truths if truth.task != DETECTION]
            regions.ground_truths = [GroundTruth(DETECTION, boxes=boxes), *others]
        said.ground_truths += regions.ground_truths
        said.incomplete |= regions.incomplete | ({DETECTION} if self._instances.refused and boxes else set())
        return said

    def _add_region(self, source: str, kind: str, result: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        (name,) = self._names(value, kind)
        self._check_size(result)
        if kind == "rectanglelabels":
            self._add_rectangle(source, name, value)
            return
        points = _get(value, "points", list)
        if not all(isinstance(p, list) and len(p) == 2 and all(map(_is_number, p)) for p in points):
            raise BadInput("points are not a list of [x, y] in percent")
        mask = self._mask(name, [v for x, y in points for v in (x * self._width / 100, y * self._height / 100)])
        self._instances.found.append((annotation.extent(mask), mask))

    def _add_rectangle(self, source: str, name: str, value: Mapping[str, Any]) -> None:
        x, y, width, height = (_number(value, key) for key in ("x", "y", "width", "height"))
        angle = _number(value, "rotation") if value.get("rotation") is not None else 0.0
        corner = (x * self._width, y * self._height, width * self._width, height * self._height)
        box = annotation.box(name, [v / 100 for v in corner])
        mask = None
        if angle:
            # Label Studio turns a rectangle clockwise around its left upper corner.
            line = _turned(box, math.radians(angle))
            box, mask = _enclosing(name, line), self._mask(name, line)
            self._said.converted.append((source, TURNED))
        right, bottom = box["x"] + box["width"], box["y"] + box["height"]
        if box["x"] > self._width or box["y"] > self._height or right < 0 or bottom < 0:
            raise BadInput("the rectangle is outside the image")
        self._instances.found.append((box, mask))
        self._boxed = True

    def _mask(self, name: str, line: list[float]) -> dict[str, Any]:
        return annotation.mask(name, polygons.fill([line], self._height, self._width), self._height, self._width)

    def _names(self, value: Mapping[str, Any], kind: str) -> list[str]:
        """The classes of a result: several of an image's choices, one of a region. Raises BadInput."""
        names: list[str] = _get(value, kind, list)
        if not names or not all(isinstance(name, str) and name for name in names):
            raise BadInput(f"{kind} is {names!r:.80}, not a class")
        if kind != "choices" and len(names) > 1:
            raise BadInput(f"{kind} is {names!r:.80}; a region has one class")
        return names

    def _check_size(self, result: Mapping[str, Any]) -> None:
        """Raises BadInput if the region was drawn on an image of another size or rotation."""
        if result.get("image_rotation"):
            raise BadInput(f"the image was rotated by {result['image_rotation']!r:.20} degrees")
        size = result.get("original_width"), result.get("original_height")
        if size != (None, None) and size != (self._width, self._height):
            raise BadInput(
                f"it was drawn on {size[0]} x {size[1]} pixels; the lake's image has {self._width} x {self._height}"
            )


def _turned(box: Mapping[str, Any], angle: float) -> list[float]:
    """The corners x, y, x, y, ... of a rectangle turned around its left upper corner by an angle in radians."""
    along = box["width"] * math.cos(angle), box["width"] * math.sin(angle)
    down = -box["height"] * math.sin(angle), box["height"] * math.cos(angle)
    sides = ((0.0, 0.0), along, (along[0] + down[0], along[1] + down[1]), down)
    return [v for dx, dy in sides for v in (box["x"] + dx, box["y"] + dy)]


def _enclosing(name: str, line: Sequence[float]) -> dict[str, Any]:
    left, top = min(line[::2]), min(line[1::2])
    return annotation.box(name, (left, top, max(line[::2]) - left, max(line[1::2]) - top))


def read(path: Path) -> Iterator[FinishedAnnotation | RejectedAnnotation]:
    """The finished annotations of an exported project, in order, without skipped ones and drafts.

    Raises BadInput if the file is not a list of tasks.
    """
    tasks = document(path)
    if not isinstance(tasks, list):
        raise BadInput(f"{path} is not a list of Label Studio tasks; export the project as JSON")
    for number, task in enumerate(tasks):
        source = f"{path.name}: [{number}]"
        try:
            yield from _annotations(task, source)
        except BadInput as error:
            yield RejectedAnnotation(source, str(error))


def _annotations(task: Any, source: str) -> Iterator[FinishedAnnotation | RejectedAnnotation]:
    if isinstance(task, dict) and "data" not in task and "annotation_id" in task:
        raise BadInput("this is the export JSON-MIN, which lacks fields; export as JSON")
    data = _get(task, "data", dict)
    image_id = _image_id(data)
    tasks = data.get("asked", [])
    if not isinstance(tasks, list) or not {*map(str, tasks)} <= {*TASKS}:
        raise BadInput(f"data.asked is {tasks!r:.80}; it is a list of {', '.join(TASKS)}")
    for number, record in enumerate(_get(task, "annotations", list)):
        annotation_source = f"{source}.annotations[{number}]"
        try:
            results = _get(record, "result", list)
            if record.get("was_cancelled"):
                continue
            yield FinishedAnnotation(
                annotation_source,
                image_id,
                _annotator(record.get("completed_by")),
                None if record.get("id") is None else str(record["id"]),
                _moment(record.get("updated_at") or record.get("created_at")),
                tuple(tasks),
                results,
            )
        except BadInput as error:
            yield RejectedAnnotation(annotation_source, str(error))


def _image_id(data: Mapping[str, Any]) -> str:
    """From the task, or from the file's name: an upload keeps the name behind a prefix."""
    image_id = data.get("image_id")
    if isinstance(image_id, str) and _IMAGE_ID.fullmatch(image_id):
        return image_id
    if image_id is None:
        image_ids: set[str] = {
            match for value in data.values() if isinstance(value, str) for match in _IMAGE_ID.findall(value)
        }
        if len(image_ids) != 1:
            raise BadInput("neither data.image_id nor the file's name has an image_id")
        return image_ids.pop()
    raise BadInput(f"data.image_id is {image_id!r:.80}, not 64 hex digits")


def _annotator(account: Any) -> str:
    if isinstance(account, dict):
        account = account.get("email") or account.get("id")
    return "label-studio" if account is None else f"label-studio {account}"


def _moment(text: Any) -> dt.datetime | None:
    if text is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"its time is {text!r:.40}, not in ISO 8601") from error


def _get(record: Any, key: str, kind: type) -> Any:
    if not isinstance(record, Mapping):
        raise BadInput("it is not an object")
    content = record.get(key)
    if not isinstance(content, kind):
        words: dict[Any, str] = {list: "a list", dict: "an object", str: "text"}
        raise BadInput(f"{key} is missing" if content is None else f"{key} is not {words[kind]}")
    return content


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e9


def _number(value: Mapping[str, Any], key: str) -> float:
    if not _is_number(value.get(key)):
        raise BadInput(f"{key} is {value.get(key)!r:.40}, not a number")
    return float(value[key])
