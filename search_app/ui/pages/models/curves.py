"""A run's curves: loss and metrics by epoch, drawn anew while it trains."""

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
            return empty_states.empty("No epoch is done yet", "Curves appear after the first one, and grow with each.")
        return empty_states.empty("Nothing was measured", "The run ended before its first epoch did.")
    if len(epochs) < 2:
        what = "A probe is fitted in one go: it has no epochs." if run.kind == "probe" else "One epoch so far."
        st.caption(what)
        return report([[_table(rows)]], key=f"curves-{run.id}")
    every = list(dict.fromkeys(_place(row) for row in rows))
    drawn = [_curve(rows, metric, every) for metric in dict.fromkeys(row["metric"] for row in rows)]
    drawn.sort(key=lambda one: one["title"] != "Loss")
    beside = 2 if len(drawn) in (2, 4) else 3
    lines: list[list[Block | None]] = [[*drawn[at : at + beside]] for at in range(0, len(drawn), beside)]
    if run.status == "running":
        newest = max(row["at"] for row in rows)
        st.caption(
            f"Newest numbers of {when(newest)} UTC, epoch {max(epochs):g} of {run.settings.get('epochs', '?')}. A run "
            "that says nothing for long was killed, and goes on with: "
            f"`{for_this_lake('train', '--resume', run.id)}`"
        )
    return report(lines, key=f"curves-{run.id}")


def _place(row: model_record.Row) -> str:
    return str(row["slice"] or row["split"] or "all")


def _curve(rows: list[model_record.Row], metric: str, every: list[str]) -> Block:
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["metric"] == metric and row["epoch"] is not None:
            series.setdefault(_place(row), []).append((row["epoch"], row["value"]))
    title = named(metric)
    return blocks.curves(
        f"{title[:1].upper()}{title[1:]}", {name: sorted(some) for name, some in series.items()}, every
    )


def _table(rows: list[model_record.Row]) -> Block:
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    found: dict[str, dict[str, model_record.Row]] = {}
    for row in rows:
        found.setdefault(_place(row), {})[row["metric"]] = row
    lines = [
        [
            place,
            count(max((one["n"] or 0 for one in mine.values()), default=0)),
            *(decimals(mine[m]["value"]) if m in mine else "–" for m in metrics),
        ]
        for place, mine in found.items()
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Images of", "left", "What the run itself saw or held out; slices that judge are under “Every slice”"),
        ("Images", "right", ""),
        *((named(m), "right", "") for m in metrics),
    ]
    return table("Measured while training", columns, lines)
