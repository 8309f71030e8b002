"""Whether confidence means what it says: the histogram and the reliability curves."""

from __future__ import annotations

from lake.analytics.calibration import Calibration, ReliabilityCurve
from search_app.ui.components import charts, empty_states
from search_app.ui.components.report import Block, numbers, report
from search_app.ui.components.report.tables import reliability
from search_app.ui.data import analysis
from search_app.ui.text.numbers import count, interval, percent


def show(where: str | None) -> None:
    """The view."""
    bins = analysis.histogram(where)
    if not bins:
        return empty_states.empty(
            "No answer here has a confidence", "The log of answers may carry one in the column `confidence`."
        )
    found = analysis.calibration(where)
    histogram = charts.confidence(bins)
    if found.equal_width is None or found.equal_count is None:
        return report([[histogram]], key="confidence-alone")
    width = _curve("Bins of equal width", found.equal_width)
    count_ = _curve("Bins of equal numbers of answers", found.equal_count)
    return report([[_numbers(found)], [width, count_], [histogram]], key="confidence")


def _numbers(found: Calibration) -> Block:
    assert found.equal_width is not None
    assert found.equal_count is not None
    sure = found.confidence or 0.0
    gap = sure - (found.accuracy.value or 0.0)
    items = [
        ("Judged answers", count(found.n), "with a confidence", ""),
        ("Mean confidence", f"{100 * sure:.1f}\N{NO-BREAK SPACE}%", "", "Of the judged answers"),
        ("Accuracy", percent(found.accuracy), f"95 % {interval(found.accuracy)}", ""),
        _ece("ECE, equal width", found.equal_width),
        _ece("ECE, equal count", found.equal_count),
    ]
    word = "surer than it is right" if gap > 0 else "less sure than it is right"
    surely = any(one.ece > one.by_chance for one in (found.equal_width, found.equal_count))
    chance = (
        "The error is more than chance explains." if surely else "A calibrated model shows such an error by chance."
    )
    note = f"On the whole the model is {abs(100 * gap):.1f} points {word}. {chance}"
    return numbers("Is confidence what it says?", *items, note=note)


def _ece(name: str, curve: ReliabilityCurve) -> tuple[str, str, str, str]:
    help = (
        "Expected calibration error: the mean gap between confidence and accuracy over the bins, by their answers. "
        f"A calibrated model with as many answers stays below {curve.by_chance:.3f} in 95 % of cases"
    )
    return name, f"{curve.ece:.3f}", f"95 % {curve.low:.3f}–{curve.high:.3f}", help


def _curve(title: str, curve: ReliabilityCurve) -> Block:
    points = [
        (one.confidence, one.accuracy.value or 0.0, one.accuracy.low or 0.0, one.accuracy.high or 0.0, one.accuracy.n)
        for one in curve.bins
    ]
    note = "Accuracy by mean confidence, with 95 % intervals. On the dashed line confidence is right; below, too high."
    return reliability(title, note, points)
