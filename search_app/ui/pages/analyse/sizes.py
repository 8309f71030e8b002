"""Boxes and masks by the size of their objects, with precision and recall where labels have boxes."""

from __future__ import annotations

from lake.analytics.detection import IOU, SizeMetrics
from lake.regions.sizes import LARGE_FROM, SMALL_BELOW
from search_app.ui.components import empty_states
from search_app.ui.components.report import Block, report
from search_app.ui.components.report.tables import cell, heat
from search_app.ui.data import analysis
from search_app.ui.text.numbers import count, percent, span


def show(where: str | None) -> None:
    """The view."""
    found = analysis.sizes(where)
    blocks = [_table(kind, sizes) for kind, sizes in found.items() if any(one.boxes or one.recall.n for one in sizes)]
    if not blocks:
        return empty_states.empty(
            "No boxes and no masks here", "Answers of detection and segmentation models carry them."
        )
    return report([[one] for one in blocks], key="sizes")


def _table(kind: str, sizes: list[SizeMetrics]) -> Block:
    judged = any(one.precision.n or one.recall.n for one in sizes)
    columns = [kind, "answers", "mean score"] + (["precision", "recall"] if judged else [])
    rows = []
    for one in sizes:
        facts = [cell(count(one.boxes)), cell(count(one.answers))]
        facts.append(cell("–" if one.confidence is None else f"{one.confidence:.2f}"))
        if judged:
            for rate in (one.precision, one.recall):
                facts.append(cell(percent(rate), f"{span(rate)}, n {count(rate.n)}" if rate.n else "no labels"))
        rows.append((one.size, facts))
    small, large = round(SMALL_BELOW**0.5), round(LARGE_FROM**0.5)
    note = f"By area as COCO counts: small below {small} × {small} pixels, large from {large} × {large}."
    if judged:
        note += f" Precision and recall against label boxes of the same class, at an overlap of {IOU} or more."
    return heat(f"{kind.capitalize()} by size", "size", columns, rows, note)
