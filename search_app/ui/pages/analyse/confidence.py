"""Calibration: the histogram of confidence, the expected calibration error and the reliability curves."""

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
        return empty_states.empty("No prediction has a confidence", "Ingest predictions with a column `confidence`.")
    calibration = analysis.calibration(where)
    histogram = charts.confidence(bins)
    if calibration.equal_width is None or calibration.equal_count is None:
        return report([[histogram]], key="confidence-alone")
    equal_width = _curve("Bins of equal width", calibration.equal_width)
    equal_count = _curve("Bins with equal numbers of predictions", calibration.equal_count)
    return report([[_numbers(calibration)], [equal_width, equal_count], [histogram]], key="confidence")


def _numbers(calibration: Calibration) -> Block:
    assert calibration.equal_width is not None
    assert calibration.equal_count is not None
    mean = calibration.confidence or 0.0
    gap = mean - (calibration.accuracy.value or 0.0)
    items = [
        ("Reviewed predictions", count(calibration.n), "with a confidence", ""),
        ("Mean confidence", f"{100 * mean:.1f}\N{NO-BREAK SPACE}%", "", "Of the reviewed predictions"),
        ("Accuracy", percent(calibration.accuracy), f"95 % {interval(calibration.accuracy)}", ""),
        _ece("ECE, equal width", calibration.equal_width),
        _ece("ECE, equal count", calibration.equal_count),
    ]
    direction = "above" if gap > 0 else "below"
    significant = any(curve.ece > curve.by_chance for curve in (calibration.equal_width, calibration.equal_count))
    chance = (
        "The calibration error is larger than chance explains (p < 0.05)."
        if significant
        else "A calibrated model can have this error by chance."
    )
    note = f"The mean confidence is {abs(100 * gap):.1f} points {direction} the accuracy. {chance}"
    return numbers("Calibration", *items, note=note)


def _ece(name: str, curve: ReliabilityCurve) -> tuple[str, str, str, str]:
    help = (
        "Expected calibration error: the mean gap between confidence and accuracy over the bins, weighted by their "
        f"predictions. A calibrated model with as many predictions stays below {curve.by_chance:.3f} in 95 % of cases"
    )
    return name, f"{curve.ece:.3f}", f"95 % {curve.low:.3f}–{curve.high:.3f}", help


def _curve(title: str, curve: ReliabilityCurve) -> Block:
    points = [
        (bin.confidence, bin.accuracy.value or 0.0, bin.accuracy.low or 0.0, bin.accuracy.high or 0.0, bin.accuracy.n)
        for bin in curve.bins
    ]
    note = "Accuracy by mean confidence, with 95 % intervals. Below the dashed line, the confidence is too high."
    return reliability(title, note, points)
