"""Reads the finished annotations of a Label Studio project, from its export "JSON".

Regions are in percent of the image's size (labelstud.io/guide/predictions). Nothing here knows the lake.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, TASKS, GroundTruth
from lake.formats.paths import document
from lake.regions import polygons

_IMAGE_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_KINDS = {"choices": CLASSIFICATION, "rectanglelabels": DETECTION, "polygonlabels": SEGMENTATION}


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
    results: Sequence[Mapping[str, Any]]

    def ground_truths(self, width: int, height: int) -> list[GroundTruth]:
        """Its ground truth for an upright image of this size, one per task. Raises BadInput."""
        regions = _Regions(width, height)
        for number, result in enumerate(self.results):
            try:
                regions.add(result)
            except BadInput as error:
                raise BadInput(f"result[{number}]: {error}") from error
        truths = regions.ground_truths()
        predicted = {truth.task for truth in truths}
        for task in self.tasks:
            if task == CLASSIFICATION and task not in predicted:
                raise BadInput("no class was chosen")
            if task == DETECTION and task not in predicted:
                truths.append(GroundTruth(task, boxes=[]))
            if task == SEGMENTATION and task not in predicted:
                truths.append(GroundTruth(task, masks=[]))
        if not truths:
            raise BadInput("it has no regions, and data.asked does not say which task was asked for")
        return truths


@dataclass(frozen=True)
class RejectedAnnotation:
    """A task or an annotation that cannot be read, and why."""

    source: str
    reason: str


@dataclass
class _Regions:
    width: int
    height: int
    choices: list[str] = field(default_factory=list)
    boxes: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)

    def add(self, result: Any) -> None:
        kind, value = _get(result, "type", str), _get(result, "value", dict)
        if kind not in _KINDS:
            raise BadInput(f"{kind} is not supported; these are: {', '.join(_KINDS)}")
        names = _get(value, kind, list)
        if len(names) != 1 or not isinstance(names[0], str) or not names[0]:
            raise BadInput(f"{kind} is {names!r:.80}; an image or a region has one class")
        if kind == "choices":
            if self.choices and self.choices != names:
                raise BadInput(f"a second class, {names[0]!r}, beside {self.choices[0]!r}")
            self.choices = names
            return
        self._check_size(result)
        if kind == "rectanglelabels":
            if value.get("rotation"):
                raise BadInput(f"the rectangle is rotated by {value['rotation']!r:.20} degrees; a box cannot be")
            x, y, width, height = (_number(value, key) for key in ("x", "y", "width", "height"))
            if x > 100 or y > 100 or x + width < 0 or y + height < 0:
                raise BadInput("the rectangle is outside the image")
            corner = (x * self.width, y * self.height, width * self.width, height * self.height)
            self.boxes.append(annotation.box(names[0], [v / 100 for v in corner]))
            return
        points = _get(value, "points", list)
        if not all(isinstance(p, list) and len(p) == 2 and all(map(_is_number, p)) for p in points):
            raise BadInput("points are not a list of [x, y] in percent")
        line = [v for x, y in points for v in (x * self.width / 100, y * self.height / 100)]
        self.masks.append(
            annotation.mask(names[0], polygons.fill([line], self.height, self.width), self.height, self.width)
        )

    def _check_size(self, result: Mapping[str, Any]) -> None:
        """Raises BadInput if the region was drawn on an image of another size or rotation."""
        if result.get("image_rotation"):
            raise BadInput(f"the image was rotated by {result['image_rotation']!r:.20} degrees")
        size = result.get("original_width"), result.get("original_height")
        if size != (None, None) and size != (self.width, self.height):
            raise BadInput(
                f"it was drawn on {size[0]} x {size[1]} pixels; the lake's image has {self.width} x {self.height}"
            )

    def ground_truths(self) -> list[GroundTruth]:
        truths = [GroundTruth(CLASSIFICATION, self.choices[0])] if self.choices else []
        truths += [GroundTruth(DETECTION, boxes=self.boxes)] if self.boxes else []
        return truths + ([GroundTruth(SEGMENTATION, masks=self.masks)] if self.masks else [])


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
