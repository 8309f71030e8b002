"""Texts of rows and events: sound Unicode only, and one form of each class's name."""

from __future__ import annotations

import re
from typing import Any

from lake.errors import BadInput

_WHOLE = re.compile(r"(-?[0-9]+)\.0+\Z")


def sound(name: str, text: str) -> str:
    """The text. Raises BadInput if it has half a surrogate pair, which JSON may contain and no table can store."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise BadInput(
                f"{sendable(name)} has {half}, half a surrogate pair, at character {error.start + 1}"
            ) from error
    return text


def sendable(text: str) -> str:
    """The text for a message: half surrogate pairs and control characters as escapes, at most 80 characters."""
    return text.encode("utf-8", "backslashreplace").decode()[:80]


def text(name: str, value: Any) -> str | None:
    """A text; a number becomes its digits. Raises BadInput for anything else."""
    if value is None or (type(value) is str and value.isascii()):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadInput(f"{name} is {shown(value)}, not text")
    return sound(name, str(value))


def class_name(name: str, value: Any) -> str | None:
    """A class in its one form: a whole number has no decimal point, so that 1, 1.0, "1" and "1.0" are one class.

    Raises BadInput for anything but text and numbers: `true` may be a class, a flag or a verdict.
    """
    if value is None:
        return None
    written = text(name, value)
    if written is not None and written[-1:] == "0" and (whole := _WHOLE.match(written)):
        return "0" if whole[1] == "-0" else whole[1]
    return written


def shown(value: Any) -> str:
    """The value for a message, at most 80 characters."""
    written = repr(value)
    return written if len(written) <= 80 else written[:77] + "..."
