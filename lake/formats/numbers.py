"""Numbers as tools write them: 1.0 and "40" are numbers, true and NaN are not."""

from __future__ import annotations

import math
import re
from typing import Any

from lake.errors import BadInput

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_WHOLE = re.compile(r"(0|[1-9]\d*)(\.0+)?", re.ASCII)


def number(name: str, value: Any) -> float:
    """A finite number, which may be written as text. Raises BadInput with `name` and the value."""
    if type(value) is float and math.isfinite(value):  # nearly all are
        return value + 0.0
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"{name} is {value!r:.60}, not a number")
    if not math.isfinite(value):
        raise BadInput(f"{name} is {value!r:.60}, not a finite number")
    try:
        return float(value) + 0.0  # no -0.0
    except OverflowError as error:
        raise BadInput(f"{name} is too large a number") from error


def whole(value: Any) -> int | None:
    """The integer that a value stands for: 7, 7.0, "7" or "7.0"; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and _WHOLE.fullmatch(value) and len(value) < 1000:
        return int(value.partition(".")[0])
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    return value if isinstance(value, int) else None


def identity(value: Any) -> int | str | None:
    """An id in a document: 7, 7.0 and "7" are the same; other text, such as "007", stands for itself; else None."""
    integer = whole(value)
    if integer is not None:
        return integer
    return value if isinstance(value, str) and value else None
