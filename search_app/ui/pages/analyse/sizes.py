"""Predicted boxes and masks by object size, with precision and recall where the labels have boxes."""

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
    by_kind = analysis.sizes(where)
    blocks = [_table(kind, sizes) for kind, sizes in by_kind.items() if any(s.boxes or s.recall.n for s in sizes)]
    if not blocks:
        return empty_states.empty(
            "No boxes and no masks", "Predictions of detection and segmentation models have them."
        )
    return report([[block] for block in blocks], key="sizes")


def _table(kind: str, sizes: list[SizeMetrics]) -> Block:
    labelled = any(size.precision.n or size.recall.n for size in sizes)
    columns = [kind, "predictions", "mean score"] + (["precision", "recall"] if labelled else [])
    rows = []
    for size in sizes:
        cells = [cell(count(size.boxes)), cell(count(size.predictions))]
        cells.append(cell("–" if size.confidence is None else f"{size.confidence:.2f}"))
        if labelled:
            for rate in (size.precision, size.recall):
                cells.append(cell(percent(rate), f"{span(rate)}, n {count(rate.n)}" if rate.n else "no labels"))
        rows.append((size.size, cells))
    small, large = round(SMALL_BELOW**0.5), round(LARGE_FROM**0.5)
    note = f"By area as in COCO: small below {small} × {small} pixels, large from {large} × {large}."
    if labelled:
        note += f" Precision and recall against labelled boxes of the same class, at an IoU of at least {IOU}."
    return heat(f"{kind.capitalize()} by size", "size", columns, rows, note)
