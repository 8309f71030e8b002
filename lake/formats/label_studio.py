"""Label Studio: a task file with pre-labels going out, finished annotations coming back.

Written: `tasks.json` (a task an image, to be imported into a project), `images/` and `label-config.xml` (the project's
labelling interface). A task's `data` carries our `image_id`; what is known of the image goes along as predictions: its
labels as the version LABELS, a model's answer as MODEL/VERSION. Read: the project's export "JSON". Regions are in
percent of the picture (labelstud.io/guide/predictions). It knows no lake.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, TASKS, ExportSample, GroundTruth
from lake.formats.export_files import ExportPart, ExportPlan, WholeExport
from lake.formats.paths import document
from lake.regions import masks, polygons

# The version under which labels that the lake has are sent as pre-labels.
LABELS = "labels"
# Where Label Studio serves local files from, when its LOCAL_FILES_DOCUMENT_ROOT is the folder above the export.
LOCAL = "/data/local-files/?d="
_IMAGE_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_KINDS = {"choices": CLASSIFICATION, "rectanglelabels": DETECTION, "polygonlabels": SEGMENTATION}


@dataclass(frozen=True)
class FinishedAnnotation:
    """One annotation that a person finished. `place`: where it stands in the file; `id` and `at`: Label Studio's own,
    None when the file does not say them; `tasks`: what the person was asked, or () when the file does not say.
    """

    place: str
    image_id: str
    annotator: str
    id: str | None
    at: dt.datetime | None
    tasks: tuple[str, ...]
    results: Sequence[Mapping[str, Any]]

    def ground_truths(self, width: int, height: int) -> list[GroundTruth]:
        """What it says of an upright picture of this size, a statement a task. Raises BadInput."""
        found = _Regions(width, height)
        for number, result in enumerate(self.results):
            try:
                found.take(result)
            except BadInput as error:
                raise BadInput(f"result[{number}]: {error}") from error
        said = found.ground_truths()
        there = {truth.task for truth in said}
        for task in self.tasks:
            if task == CLASSIFICATION and task not in there:
                raise BadInput("no class was chosen")
            if task == DETECTION and task not in there:
                said.append(GroundTruth(task, boxes=[]))
            if task == SEGMENTATION and task not in there:
                said.append(GroundTruth(task, masks=[]))
        if not said:
            raise BadInput("it says nothing, and the task does not say what was asked (data.asked)")
        return said


@dataclass(frozen=True)
class RejectedAnnotation:
    """A task or an annotation that cannot be taken, and why."""

    place: str
    reason: str


@dataclass
class _Regions:
    width: int
    height: int
    choices: list[str] = field(default_factory=list)
    boxes: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)

    def take(self, result: Any) -> None:
        kind, value = _get(result, "type", str), _get(result, "value", dict)
        if kind not in _KINDS:
            raise BadInput(f"{kind} is not read; these are: {', '.join(_KINDS)}")
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
                raise BadInput(f"the rectangle is turned by {value['rotation']!r:.20} degrees; a box cannot be")
            x, y, width, height = (_number(value, key) for key in ("x", "y", "width", "height"))
            if x > 100 or y > 100 or x + width < 0 or y + height < 0:
                raise BadInput("the rectangle is outside the picture")
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
        """A region of a picture of another size lies elsewhere."""
        if result.get("image_rotation"):
            raise BadInput(f"the picture was turned by {result['image_rotation']!r:.20} degrees")
        said = result.get("original_width"), result.get("original_height")
        if said != (None, None) and said != (self.width, self.height):
            raise BadInput(f"it is of a picture of {said[0]} x {said[1]}; the lake's has {self.width} x {self.height}")

    def ground_truths(self) -> list[GroundTruth]:
        said = [GroundTruth(CLASSIFICATION, self.choices[0])] if self.choices else []
        said += [GroundTruth(DETECTION, boxes=self.boxes)] if self.boxes else []
        return said + ([GroundTruth(SEGMENTATION, masks=self.masks)] if self.masks else [])


# Reading ---------------------------------------------------------------------------------------------------


def read(path: Path) -> Iterator[FinishedAnnotation | RejectedAnnotation]:
    """The finished annotations of an exported project, in order. Skipped ones and drafts are left out.

    Raises BadInput when the file is no list of tasks.
    """
    tasks = document(path)
    if not isinstance(tasks, list):
        raise BadInput(f"{path} is no list of Label Studio tasks; export the project as JSON")
    for number, task in enumerate(tasks):
        place = f"{path.name}: [{number}]"
        try:
            yield from _annotations(task, place)
        except BadInput as error:
            yield RejectedAnnotation(place, str(error))


def _annotations(task: Any, place: str) -> Iterator[FinishedAnnotation | RejectedAnnotation]:
    if isinstance(task, dict) and "data" not in task and "annotation_id" in task:
        raise BadInput("this is the export JSON-MIN, which leaves out what is needed; choose JSON")
    data = _get(task, "data", dict)
    image_id = _image_id(data)
    given = data.get("asked", [])
    if not isinstance(given, list) or not {*map(str, given)} <= {*TASKS}:
        raise BadInput(f"data.asked is {given!r:.80}; it is a list of {', '.join(TASKS)}")
    for number, one in enumerate(_get(task, "annotations", list)):
        where = f"{place}.annotations[{number}]"
        try:
            results = _get(one, "result", list)
            if one.get("was_cancelled"):
                continue
            yield FinishedAnnotation(
                where,
                image_id,
                _annotator(one.get("completed_by")),
                None if one.get("id") is None else str(one["id"]),
                _moment(one.get("updated_at") or one.get("created_at")),
                tuple(given),
                results,
            )
        except BadInput as error:
            yield RejectedAnnotation(where, str(error))


def _image_id(data: Mapping[str, Any]) -> str:
    """As the task says it, or as the file is called: an upload keeps the name behind a prefix of its own."""
    given = data.get("image_id")
    if isinstance(given, str) and _IMAGE_ID.fullmatch(given):
        return given
    if given is None:
        found: set[str] = {one for value in data.values() if isinstance(value, str) for one in _IMAGE_ID.findall(value)}
        if len(found) != 1:
            raise BadInput("which image is it? neither data.image_id nor the file's name says one image_id")
        return found.pop()
    raise BadInput(f"data.image_id is {given!r:.80}, not 64 hex digits")


def _annotator(given: Any) -> str:
    if isinstance(given, dict):
        given = given.get("email") or given.get("id")
    return "label-studio" if given is None else f"label-studio {given}"


def _moment(given: Any) -> dt.datetime | None:
    if given is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(given)
        return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadInput(f"its time is {given!r:.40}, not as ISO 8601 writes it") from error


def _get(given: Any, key: str, kind: type) -> Any:
    if not isinstance(given, Mapping):
        raise BadInput("it is not an object")
    value = given.get(key)
    if not isinstance(value, kind):
        words: dict[Any, str] = {list: "a list", dict: "an object", str: "text"}
        raise BadInput(f"{key} is missing" if value is None else f"{key} is not {words[kind]}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e9


def _number(value: Mapping[str, Any], key: str) -> float:
    if not _is_number(value.get(key)):
        raise BadInput(f"{key} is {value.get(key)!r:.40}, not a number")
    return float(value[key])


# Writing ---------------------------------------------------------------------------------------------------


def write(part: ExportPart, samples: Iterator[ExportSample]) -> None:
    asked = _asked(part.plan)
    for sample in samples:
        name = f"images/{sample.name}"
        part.file(name, sample.image.data)
        data = {"image": f"{LOCAL}{part.root.resolve().name}/{name}", "image_id": sample.image.image_id, "asked": asked}
        versions = []
        known = [r for truth in sample.ground_truths.values() for r in _results(part, truth, sample, asked)]
        if known:
            versions.append({"model_version": LABELS, "result": known})
        if sample.prediction is not None:
            versions += _answer(part, sample, asked)
        part.line("tasks", {"data": data, "predictions": versions})


def finish(whole: WholeExport) -> None:
    with whole.open("tasks.json") as out:
        out.write(b"[")
        for number, task in enumerate(whole.lines("tasks")):
            out.write(f"{',' if number else ''}\n{annotation.as_json(task)}".encode())
        out.write(b"\n]\n")
    names = whole.plan.classes if _asked(whole.plan) != [CLASSIFICATION] else {*whole.plan.labels, *whole.lines("said")}
    whole.text("label-config.xml", _config(_asked(whole.plan)[0], sorted(name for name in names if name)))


def _asked(plan: ExportPlan) -> list[str]:
    """What the people are asked: regions when any are known, else a class of the whole image."""
    return [plan.task] if plan.classes else [CLASSIFICATION]


def _config(asked: str, names: Sequence[str]) -> Iterator[str]:
    """The project's labelling interface. Classes that nobody has named yet are added in Label Studio."""
    tag, item = {
        CLASSIFICATION: ("Choices", "Choice"),
        DETECTION: ("RectangleLabels", "Label"),
        SEGMENTATION: ("PolygonLabels", "Label"),
    }[asked]
    yield "<View>"
    yield '  <Image name="image" value="$image" zoom="true"/>'
    yield f'  <{tag} name="{asked}" toName="image" choice="single">'
    yield from (f"    <{item} value={quoteattr(name)}/>" for name in names)
    yield f"  </{tag}>"
    yield "</View>"


def _answer(part: ExportPart, sample: ExportSample, asked: Sequence[str]) -> list[dict[str, Any]]:
    """A model's answer as a prediction; its confidence is the task's score, by which Label Studio sorts."""
    answer = sample.prediction or {}
    truth = (
        GroundTruth(CLASSIFICATION, answer.get("label"))
        if asked == [CLASSIFICATION]
        else annotation.prediction_regions(answer)
    )
    results = _results(part, truth, sample, asked) if truth.label or asked != [CLASSIFICATION] else []
    if not results:
        return []
    if truth.label:
        part.line("said", truth.label)
    version = "/".join(str(answer[key]) for key in ("model", "model_version") if answer.get(key) is not None)
    said = {"model_version": version, "result": results}
    return [said if answer.get("confidence") is None else said | {"score": answer["confidence"]}]


def _results(part: ExportPart, truth: GroundTruth, sample: ExportSample, asked: Sequence[str]) -> list[dict[str, Any]]:
    if truth.task not in asked:
        part.leave_out(f"{truth.task}, where {asked[0]} is asked")
        return []
    size = {"original_width": sample.image.width, "original_height": sample.image.height, "image_rotation": 0}
    width, height = sample.image.width, sample.image.height
    if truth.task == CLASSIFICATION:
        given: list[tuple[str, dict[str, Any], str | None, float | None]] = [("choices", {}, truth.label, None)]
        size = {}
    elif truth.task == DETECTION:
        given = [
            ("rectanglelabels", {"x": b["x"] * 100 / width, "y": b["y"] * 100 / height, "rotation": 0,
              "width": b["width"] * 100 / width, "height": b["height"] * 100 / height}, b["label"], b["score"])
            for b in truth.boxes or ()
        ]  # fmt: skip
    else:
        given = [
            ("polygonlabels", {"points": _points(m, width, height), "closed": True}, m["label"], m["score"])
            for m in truth.masks or ()
        ]
    part.leave_out("regions without a class", sum(not name for _, _, name, _ in given))
    found = []
    for number, (kind, place, name, score) in enumerate(given):
        if name:
            value = place | {kind: [name]}
            one = {"id": f"{truth.task}{number}", "type": kind, "from_name": truth.task, "to_name": "image"} | size
            found.append(one | {"value": value} | ({} if score is None else {"score": score}))
    return found


def _points(mask: Mapping[str, Any], width: int, height: int) -> list[list[float]]:
    line = polygons.outline(masks.decode(mask["counts"], mask["height"], mask["width"]))
    return [[x * 100 / width, y * 100 / height] for x, y in line]
