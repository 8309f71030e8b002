"""Moments in rows and events: ISO 8601, calendar digits, and counts of seconds or less since 1970."""

from __future__ import annotations

import datetime as dt
from typing import Any, Literal

from lake.errors import BadInput
from lake.prediction_logs.texts import shown

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_DAY = dt.timedelta(days=1)
# Digits -> where day, hour, minute and second end. 20260115 is a day, 20260115103000 a second of it.
_CALENDAR = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
# 1e11 seconds is the year 5138, 1e11 milliseconds is 1973; and so on by thousands.
_UNITS = ((1e11, 1), (1e14, 1_000), (1e17, 1_000_000), (1e20, 1_000_000_000))
FORMS = "an ISO 8601 time, digits of a calendar day such as 20260115, or seconds to nanoseconds since 1970"


def parse_time(name: str, value: Any) -> dt.datetime | None:
    """A moment in UTC; without a zone it is UTC. Raises BadInput.

    8, 12 and 14 digits that are a calendar day of 1900 to 2100 (with hour and minute, and second) are that moment. 10
    digits are seconds since 1970, unless that lies in the future and they are a calendar hour. Other numbers count
    since 1970, in the largest unit of seconds, milliseconds, microseconds and nanoseconds that stays before 5138.
    """
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, dt.datetime):
            moment = value
        elif isinstance(value, int | float):
            moment = _from_number(value)
        else:
            text = str(value).strip()
            try:
                number = int(text) if text.lstrip("+-").isdecimal() else float(text)
            except ValueError:
                moment = dt.datetime.fromisoformat(text)
            else:
                if "_" in text:
                    raise ValueError
                moment = _from_number(number)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=dt.UTC)
        return moment.astimezone(dt.UTC)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise BadInput(f"{name} is {shown(value)}, not {FORMS}") from error


def _from_number(number: float) -> dt.datetime:
    if not abs(number) < 1e20:  # also not-a-number
        raise ValueError
    if 1e7 <= number < 1e14 and number == int(number):
        moment = _calendar(str(int(number)))
        if moment is not None:
            return moment
    per_second = next(unit for limit, unit in _UNITS if abs(number) < limit)
    if isinstance(number, int):
        seconds, rest = divmod(number, per_second)
        return _EPOCH + dt.timedelta(seconds=seconds, microseconds=rest * 1_000_000 // per_second)
    return dt.datetime.fromtimestamp(number / per_second, dt.UTC)


def _calendar(digits: str) -> dt.datetime | None:
    pattern = _CALENDAR.get(len(digits))
    if pattern is None or not "1900" <= digits[:4] <= "2100":
        return None
    try:
        moment = dt.datetime.strptime(digits, pattern).replace(tzinfo=dt.UTC)
    except ValueError:
        return None
    if len(digits) == 10:
        seconds = _EPOCH + dt.timedelta(seconds=int(digits))
        if unlikely(seconds) != "in the future":
            return None
    return moment


def unlikely(moment: dt.datetime) -> Literal["in 1970", "in the future"] | None:
    """Whether a moment is one that a wrong unit gives: in 1970, or more than a day ahead."""
    if moment.year == 1970:
        return "in 1970"
    return "in the future" if moment > dt.datetime.now(dt.UTC) + _DAY else None
