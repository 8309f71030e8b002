"""Volume, accuracy and confidence over time."""

from __future__ import annotations

from dataclasses import asdict

from search_app.ui.components import charts, empty_states
from search_app.ui.components.report import report
from search_app.ui.data import analysis


def show(where: str | None) -> None:
    """The view."""
    days = [asdict(day) for day in analysis.days(where)]
    if not days:
        return empty_states.empty("No predictions with a timestamp", "Charts over time need a timestamp.")
    return report([[charts.volume(days)], [charts.accuracy(days), charts.mean_confidence(days)]], key="over-time")
