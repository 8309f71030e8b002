"""Numbers of rows and events: finite ones, probabilities, and whole numbers of 64 bits with all their digits."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from lake.errors import BadInput
from lake.prediction_logs.texts import shown

# Softmax in float32 gives 1.0000001; within this a probability is clamped, and that is said.
TOLERANCE = 1e-4
CLAMPED = f"a confidence or score less than {TOLERANCE} outside of 0 to 1 was set to 0 or 1"
COMMA = "a decimal comma was read as a decimal point"
_DECIMAL_COMMA = re.compile(r"\s*[+-]?[0-9]+,[0-9]+\s*\Z")
_THOUSANDS = re.compile(r"\s*[+-]?[1-9][0-9]{0,2},[0-9]{3}\s*\Z")


class Numbers:
    """How numbers are written in a log. `converted` collects what was read in another form than it was written.

    `scale`: of confidences and scores: 100 for percentages. `comma`: the file may have decimal commas.
    """

    __slots__ = ("comma", "converted", "scale")

    def __init__(self, scale: float = 1.0, *, comma: bool = False) -> None:
        self.scale = scale
        self.comma = comma
        self.converted: list[str] = []

    def number(self, name: str, value: Any) -> float | None:
        """A finite number. Raises BadInput."""
        return None if value is None else self._float(name, value, thousands=True)

    def _float(self, name: str, value: Any, *, thousands: bool) -> float:
        if self.comma and isinstance(value, str) and _DECIMAL_COMMA.match(value):
            if thousands and _THOUSANDS.match(value):
                raise BadInput(f"{name} is {shown(value)}: a decimal comma, or a thousand? Write it without comma")
            self.converted.append(COMMA)
            value = value.replace(",", ".")
        try:
            if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
                raise ValueError
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"{name} is {shown(value)}, not a number") from error
        if not math.isfinite(number):
            raise BadInput(f"{name} is {shown(value)}, not a finite number")
        return number + 0.0  # Lance's filters tell -0.0 from 0.0, DuckDB's do not

    def fraction(self, name: str, value: Any) -> float | None:
        """A probability of 0 to 1; within TOLERANCE of them it is clamped. Raises BadInput with a guess."""
        if value is None:
            return None
        if isinstance(value, str) and value.rstrip().endswith("%"):
            if self.scale != 100:
                raise BadInput(f"{name} is {shown(value)}, not a number of 0 to 1; {_PERCENTAGE}")
            value = value.rstrip()[:-1]
        number = self._float(name, value, thousands=False)
        fraction = number if self.scale == 1.0 else number / self.scale
        if 0.0 <= fraction <= 1.0:
            return fraction
        if -TOLERANCE <= fraction <= 1.0 + TOLERANCE:
            self.converted.append(CLAMPED)
            return 0.0 if fraction < 0 else 1.0
        limits = "between 0 and 1" if self.scale == 1.0 else f"between 0 and {self.scale:g}"
        hint = "" if self.scale != 1.0 else _PERCENTAGE if 20 < number <= 100 else _LOGIT
        raise BadInput(f"{name} is {number:.10g}, not {limits}" + (f"; {hint}" if hint else ""))


_PERCENTAGE = "it looks like a percentage: divide it by 100 (a whole log: --confidence-scale 100)"
_LOGIT = "it looks like a logit: store the probability (softmax or sigmoid of it)"


def whole(name: str, value: Any) -> int | None:
    """A whole number of 64 bits, with every digit that was written. Raises BadInput."""
    if value is None:
        return None
    number = Numbers().number(name, value)
    assert number is not None
    if number != math.floor(number):
        raise BadInput(f"{name} is {shown(value)}, not a whole number")
    if not -(2**63) <= number <= 2**63:
        raise BadInput(f"{name} is {shown(value)}, beyond 64 bits")
    if isinstance(value, float) and abs(value) > 2**53:
        raise BadInput(f"{name} is {shown(value)}, a float without its last digits; write it as a whole number")
    if isinstance(value, str):  # a float has 53 bits
        exact = Decimal(value.strip())
        if exact != exact.to_integral_value():
            raise BadInput(f"{name} is {shown(value)}, not a whole number")
        digits = int(exact)
    else:
        digits = int(value)
    if not -(2**63) <= digits < 2**63:
        raise BadInput(f"{name} is {shown(value)}, beyond 64 bits")
    return digits
