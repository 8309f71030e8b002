"""Lines of YOLO label files: each a box, a polygon, a turned box (OBB) or the box of a pose, with a class number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lake.errors import BadInput
from lake.formats import annotation
from lake.formats.instances import Region
from lake.formats.numbers import number, whole
from lake.regions import polygons

# How far beyond 0 and 1 a coordinate may be that rounding put there.
_NOISE = 1e-3
CLAMPED = "a coordinate beyond the image's edge by at most 0.001 was set to the edge"
KEYPOINTS = "keypoints are not kept; the box is"
TURNED = "a turned box (OBB) is kept as a polygon and its enclosing box"


@dataclass(frozen=True)
class LineForm:
    """What the numbers of a data set's lines mean. `turned`: 8 numbers after the class are the corners of a turned box;
    `keypoint_numbers`: so many numbers after a box are keypoints.
    """

    names: Mapping[int, str]
    turned: bool = False
    keypoint_numbers: int | None = None


@dataclass
class YoloLine:
    """An instance and what was converted to get it."""

    region: Region
    converted: list[str] = field(default_factory=list)


def read_line(form: LineForm, words: Sequence[str], width: int, height: int) -> YoloLine:
    """The instance that a line says on an upright image of this size. Raises BadInput."""
    values = _numbers(words)
    index = whole(values[0])
    if index is None or index < 0:
        raise BadInput(f"the line begins with {words[0]!r:.20}; it must begin with a class number")
    if form.names and index not in form.names:
        raise BadInput(f"class {index} has no name in the data set's YAML")
    label, rest = form.names.get(index, str(index)), values[1:]
    converted = []
    if form.keypoint_numbers is not None and len(rest) > 5:
        rest = _without_keypoints(rest, form.keypoint_numbers)
        converted.append(KEYPOINTS)
    score = rest.pop() if len(rest) == 5 or (len(rest) > 6 and len(rest) % 2) else None
    inside = [min(max(value, 0.0), 1.0) for value in rest]
    if any(abs(value - kept) > _NOISE for value, kept in zip(rest, inside, strict=True)):
        beyond = next(value for value in rest if not -_NOISE <= value <= 1 + _NOISE)
        raise BadInput(f"a coordinate is {beyond:g}, not between 0 and 1: YOLO's are fractions of the image's size")
    if inside != rest:
        converted.append(CLAMPED)
    if len(inside) == 4:
        x, y, w, h = inside[0] * width, inside[1] * height, inside[2] * width, inside[3] * height
        return YoloLine((annotation.box(label, (x - w / 2, y - h / 2, w, h), score), None), converted)
    if len(inside) < 6:
        raise BadInput(f"{len(inside)} numbers after the class; a box has 4, a polygon 6 or more")
    points = [v * (height if i % 2 else width) for i, v in enumerate(inside)]
    mask = annotation.mask(label, polygons.fill([points], height, width), height, width, score)
    if form.turned and len(inside) == 8:
        converted.append(TURNED)
        return YoloLine((enclosing_box(label, points, score), mask), converted)
    return YoloLine((annotation.extent(mask), mask), converted)


def _numbers(words: Sequence[str]) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = [math.nan]
    # `float` also takes NaN and 1_000; it is three times as fast as `number`, which says what is wrong.
    if all(map(math.isfinite, values)) and not any("_" in word for word in words):
        return values
    return [number(f"number {position}", word) for position, word in enumerate(words, start=1)]


def _without_keypoints(rest: list[float], keypoint_numbers: int) -> list[float]:
    """The box, and the score if there is one."""
    if len(rest) not in (4 + keypoint_numbers, 5 + keypoint_numbers):
        raise BadInput(
            f"{len(rest)} numbers after the class; by kpt_shape there are 4 of the box and {keypoint_numbers} of"
            " keypoints"
        )
    return rest[:4] + rest[4 + keypoint_numbers :]


def enclosing_box(label: str | None, points: Sequence[float], score: float | None = None) -> dict[str, object]:
    """The smallest box around points x, y, x, y, ..."""
    left, top = min(points[::2]), min(points[1::2])
    return annotation.box(label, (left, top, max(points[::2]) - left, max(points[1::2]) - top), score)
