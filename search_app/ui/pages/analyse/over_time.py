"""Volume, accuracy and confidence over time."""

from __future__ import annotations

from dataclasses import asdict

from search_app.ui.components import charts, empty_states
from search_app.ui.components.report import report
from search_app.ui.data import analysis


def show(where: str | None) -> None:
    """The view."""
    days = [asdict(one) for one in analysis.days(where)]
    if not days:
        return empty_states.empty("No answer here has a time", "Over time needs answers that say when they were given.")
    return report([[charts.volume(days)], [charts.accuracy(days), charts.sureness(days)]], key="course")
