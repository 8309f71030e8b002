"""What the page Analyse asks the lake: `lake.metrics` and its like, cached by the versions of the tables they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import streamlit as st

from lake.analytics import calibration as calibrations
from lake.analytics import detection, dimensions, metrics
from lake.analytics.calibration import Calibration
from lake.analytics.detection import SizeMetrics
from lake.analytics.metrics import Breakdown, ClassMetrics, DayMetrics, ModelComparison
from search_app.ui import session
from search_app.ui.data import queries

T = TypeVar("T")


# Not cache_data, which copies: what comes back is never changed, and some of it cannot be copied.
@st.cache_resource(max_entries=192, show_spinner=False)
def _kept(stamp: queries.Stamp, _ask: Callable[[], Any], *key: Any) -> Any:
    return _ask()


def _once(ask: Callable[[], T], *key: Any) -> T:
    found: T = _kept(queries.stamp(), ask, *key)
    return found


def names() -> list[str]:
    """Every dimension of the lake."""
    return _once(lambda: dimensions.names(session.lake()), "names")


def by(chosen: tuple[str, ...], where: str | None) -> Breakdown:
    """As `metrics.by`."""
    return _once(lambda: metrics.by(session.lake(), chosen, where), "by", chosen, where)


def calibration(where: str | None) -> Calibration:
    """As `lake.calibration`."""
    return _once(lambda: calibrations.calibration(session.lake(), where), "calibration", where)


def histogram(where: str | None) -> list[dict[str, Any]]:
    """As `metrics.histogram`."""
    return _once(lambda: metrics.histogram(session.lake(), where), "histogram", where)


def confusion(where: str | None) -> dict[tuple[str, str | None], int]:
    """As `metrics.confusion`."""
    return _once(lambda: metrics.confusion(session.lake(), where), "confusion", where)


def confused(truth: str, answer: str | None, where: str | None) -> list[str]:
    """As `metrics.confused`."""
    return _once(lambda: metrics.confused(session.lake(), truth, answer, where), "confused", truth, answer, where)


def classes(where: str | None) -> list[ClassMetrics]:
    """As `metrics.classes`."""
    return _once(lambda: metrics.classes(session.lake(), where), "classes", where)


def days(where: str | None) -> list[DayMetrics]:
    """As `metrics.days`."""
    return _once(lambda: metrics.days(session.lake(), where), "days", where)


def sizes(where: str | None) -> dict[str, list[SizeMetrics]]:
    """Boxes and masks by size, as `lake.detection`."""
    lake = session.lake()
    return _once(lambda: {"boxes": detection.boxes(lake, where), "masks": detection.masks(lake, where)}, "sizes", where)


def models() -> list[str]:
    """As `metrics.models`."""
    return _once(lambda: metrics.models(session.lake()), "models")


def compare(old: str, new: str, where: str | None) -> ModelComparison:
    """As `metrics.compare`."""
    return _once(lambda: metrics.compare(session.lake(), old, new, where), "compare", old, new, where)
