"""The view Curves of a run: loss and metrics by epoch, updated while it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from search_app.ui.components import empty_states
from search_app.ui.components.report import Align, Block, report, table
from search_app.ui.components.report import trained as blocks
from search_app.ui.data import model_record
from search_app.ui.pages.models.wording import decimals, named, when
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.numbers import count

if TYPE_CHECKING:
    from training.registry.runs import Run

EVERY_SECONDS = 1.5


def show(run: Run) -> None:
    """The view."""
    if run.status == "running":
        return _live(run)
    return _drawn(run)


@st.fragment(run_every=EVERY_SECONDS)
def _live(run: Run) -> None:
    _drawn(run)


def _drawn(run: Run) -> None:
    rows = [row for row in model_record.curves(run.id) if row["value"] is not None]
    epochs = {row["epoch"] for row in rows if row["epoch"] is not None}
    if not rows:
        if run.status == "running":
            return empty_states.empty("No epoch is done yet", "The curves appear after the first epoch.")
        return empty_states.empty("Nothing was measured", "The run ended before its first epoch.")
    if len(epochs) < 2:
        st.caption("A probe has no epochs." if run.kind == "probe" else "One epoch so far.")
        return report([[_table(rows)]], key=f"curves-{run.id}")
    names = list(dict.fromkeys(_images_of(row) for row in rows))
    charts = [_curve(rows, metric, names) for metric in dict.fromkeys(row["metric"] for row in rows)]
    charts.sort(key=lambda chart: chart["title"] != "Loss")
    columns = 2 if len(charts) in (2, 4) else 3
    lines: list[list[Block | None]] = [[*charts[i : i + columns]] for i in range(0, len(charts), columns)]
    if run.status == "running":
        newest = max(row["at"] for row in rows)
        st.caption(
            f"Last update {when(newest)} UTC, epoch {max(epochs):g} of {run.settings.get('epochs', '?')}. Without "
            "an update for long, the run was killed. Resume it with: "
            f"`{for_this_lake('train', '--resume', run.id)}`"
        )
    return report(lines, key=f"curves-{run.id}")


def _images_of(row: model_record.Row) -> str:
    return str(row["slice"] or row["split"] or "all")


def _curve(rows: list[model_record.Row], metric: str, every: list[str]) -> Block:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["metric"] == metric and row["epoch"] is not None:
            series.setdefault(_images_of(row), []).append((row["epoch"], row["value"]))
    title = named(metric)
    return blocks.curves(
        f"{title[:1].upper()}{title[1:]}", {name: sorted(points) for name, points in series.items()}, every
    )


def _table(rows: list[model_record.Row]) -> Block:
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    by_images: dict[str, dict[str, model_record.Row]] = {}
    for row in rows:
        by_images.setdefault(_images_of(row), {})[row["metric"]] = row
    lines = [
        [
            name,
            count(max((row["n"] or 0 for row in by_metric.values()), default=0)),
            *(decimals(by_metric[m]["value"]) if m in by_metric else "–" for m in metrics),
        ]
        for name, by_metric in by_images.items()
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Images of", "left", "Images that the run trained on or held out; for evaluation slices see “Slices”"),
        ("Images", "right", ""),
        *((named(m), "right", "") for m in metrics),
    ]
    return table("Measured during training", columns, lines)
