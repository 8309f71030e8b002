"""Volume, accuracy and confidence over time."""

from __future__ import annotations

from dataclasses import asdict

from search_app.ui import analysis, charts, words
from search_app.ui.report import report


def show(where: str | None) -> None:
    """The view."""
    days = [asdict(one) for one in analysis.days(where)]
    if not days:
        return words.empty("No answer here has a time", "Over time needs answers that say when they were given.")
    return report([[charts.volume(days)], [charts.accuracy(days), charts.sureness(days)]], key="course")
