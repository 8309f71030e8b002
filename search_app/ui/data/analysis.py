"""What the page Analyse reads: functions of `lake.analytics`, cached by table versions."""

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


# Not cache_data, which copies: the results are never changed, and some of them cannot be copied.
@st.cache_resource(max_entries=192, show_spinner=False)
def _cached(stamp: queries.Stamp, _compute: Callable[[], Any], *key: Any) -> Any:
    return _compute()


def _once(compute: Callable[[], T], *key: Any) -> T:
    result: T = _cached(queries.stamp(), compute, *key)
    return result


def names() -> list[str]:
    """Every dimension of the lake."""
    return _once(lambda: dimensions.names(session.lake()), "names")


def by(chosen: tuple[str, ...], where: str | None) -> Breakdown:
    """As `metrics.by`."""
    return _once(lambda: metrics.by(session.lake(), chosen, where), "by", chosen, where)


def calibration(where: str | None) -> Calibration:
    """As `calibration.calibration`."""
    return _once(lambda: calibrations.calibration(session.lake(), where), "calibration", where)


def histogram(where: str | None) -> list[dict[str, Any]]:
    """As `metrics.histogram`."""
    return _once(lambda: metrics.histogram(session.lake(), where), "histogram", where)


def confusion(where: str | None) -> dict[tuple[str, str | None], int]:
    """As `metrics.confusion`."""
    return _once(lambda: metrics.confusion(session.lake(), where), "confusion", where)


def confused(ground_truth: str, prediction: str | None, where: str | None) -> list[str]:
    """As `metrics.confused`."""
    return _once(
        lambda: metrics.confused(session.lake(), ground_truth, prediction, where),
        "confused",
        ground_truth,
        prediction,
        where,
    )


def classes(where: str | None) -> list[ClassMetrics]:
    """As `metrics.classes`."""
    return _once(lambda: metrics.classes(session.lake(), where), "classes", where)


def days(where: str | None) -> list[DayMetrics]:
    """As `metrics.days`."""
    return _once(lambda: metrics.days(session.lake(), where), "days", where)


def sizes(where: str | None) -> dict[str, list[SizeMetrics]]:
    """Boxes and masks by size, as `detection.boxes` and `detection.masks`."""
    lake = session.lake()
    return _once(lambda: {"boxes": detection.boxes(lake, where), "masks": detection.masks(lake, where)}, "sizes", where)


def models() -> list[str]:
    """As `metrics.models`."""
    return _once(lambda: metrics.models(session.lake()), "models")


def compare(old: str, new: str, where: str | None) -> ModelComparison:
    """As `metrics.compare`."""
    return _once(lambda: metrics.compare(session.lake(), old, new, where), "compare", old, new, where)
