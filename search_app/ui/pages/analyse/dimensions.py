"""Error by one or two dimensions, as a heat table. Every cell links to its predictions."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from lake.analytics.metrics import Breakdown, MetricCell
from lake.sql.where import conjunction
from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.components.report import Block, Link, link, report
from search_app.ui.components.report.tables import cell, heat
from search_app.ui.data import analysis
from search_app.ui.text.numbers import count, percent, share, span

ROWS, COLUMNS = 60, 14
NONE = "–"
_COLUMNS = ("wrong", "95 % interval", "reviewed", "predictions", "confidence")


def show(where: str | None) -> None:
    """The view."""
    known = analysis.names()
    current = [name for name in session.param("dim").split(",") if name in known][:2] or known[:1]
    with st.container(horizontal=True, vertical_alignment="bottom", key="dimensions"):
        first = st.selectbox("Rows", known, known.index(current[0]), format_func=_title, width=260)
        others = ["", *(name for name in known if name != first)]
        index = others.index(current[1]) if len(current) > 1 and current[1] in others else 0
        second = st.selectbox(
            "Columns",
            others,
            index,
            format_func=lambda name: _title(name) if name else "none: rates and counts",
            width=260,
        )
    chosen = tuple(name for name in (first, second) if name)
    if list(chosen) != current:
        session.put(dim=",".join(chosen))
    breakdown = analysis.by(chosen, where)
    if not breakdown.cells:
        return empty_states.empty(
            "No prediction has a value for this", "Choose another dimension, or remove a filter above."
        )
    more = f" {count(breakdown.left_out)} smaller groups are not shown." if breakdown.left_out else ""
    if len(chosen) == 1:
        table = dimension_table(breakdown, f"Error by {breakdown.dimensions[0].title}", more)
        return report([[table]], key="dimensions-one")
    return report([[_two(breakdown, more)]], key="dimensions-two")


def _title(name: str) -> str:
    return name.removeprefix("metadata.").replace("_", " ") + (" (metadata)" if name.startswith("metadata.") else "")


def dimension_table(breakdown: Breakdown, title: str, more: str = "", most: int = ROWS) -> Block:
    """One row for each value of the first dimension: the error with its interval, and counts."""
    overall = breakdown.whole.error.value
    rows = [(_name(breakdown, group), _facts(group, overall)) for group in breakdown.cells[:most]]
    rows.append(("all", _facts(breakdown.whole, None)))
    unseen = len(breakdown.cells) - most
    more += f" {unseen} more under “By dimension”." if unseen > 0 else ""
    return heat(title, breakdown.dimensions[0].title, _COLUMNS, rows, f"{_DARK}{more}")


_DARK = "Dark orange: worse than the overall rate (p < 0.05)."


def _facts(group: MetricCell, overall: float | None) -> list[Block | None]:
    confidence = "–" if group.confidence is None else f"{group.confidence:.2f}"
    return [
        cell(percent(group.error), share=_tint(group, overall)),
        cell(span(group.error)),
        cell(count(group.known)),
        cell(count(group.predictions)),
        cell(confidence),
    ]


def _tint(group: MetricCell, overall: float | None) -> float | None:
    """The strength of the tint: strong if the whole interval of the error is above the overall rate, else weak; None
    if the error is not above it.
    """
    error = group.error
    if error.value is None or error.low is None or overall is None or error.value <= overall:
        return None
    return max(0.25, error.value) if error.low > overall else 0.12


def _name(breakdown: Breakdown, group: MetricCell) -> Link | str:
    text = NONE if group.values[0] is None else group.values[0]
    return _link(text, breakdown.predicate(group)) or text


def _link(text: str, predicate: str | None) -> Link | None:
    if predicate is None:
        return None
    filter = scope.current().sql
    return link(text, "search", where=conjunction(filter, predicate))


def _two(breakdown: Breakdown, more: str) -> Block:
    rows, columns = _ordered(breakdown, 0), _ordered(breakdown, 1)
    shown = columns[:COLUMNS]
    groups = {group.values: group for group in breakdown.cells}
    overall = breakdown.whole.error.value
    lines = []
    for row in rows[:ROWS]:
        value = row.values[0]
        cells = [_linked(breakdown, groups.get((value, column.values[1])), overall) for column in shown]
        lines.append((NONE if value is None else value, [*cells, _cell(row, overall)]))
    lines.append(("all", [*(_cell(column, overall) for column in shown), _cell(breakdown.whole, overall)]))
    heads = [NONE if column.values[1] is None else column.values[1] for column in shown]
    cut = {"rows": len(rows) - ROWS, "columns": len(columns) - COLUMNS}
    more += "".join(f" {n} more {kind} are not shown." for kind, n in cut.items() if n > 0)
    note = (
        "Share of the reviewed predictions that are wrong, with its 95 % interval and the number of reviewed "
        f"predictions. {_DARK}{more}"
    )
    names = [dimension.title for dimension in breakdown.dimensions]
    return heat(f"Error by {names[0]} and {names[1]}", f"{names[0]} \\ {names[1]}", [*heads, "all"], lines, note)


def _ordered(breakdown: Breakdown, index: int) -> Sequence[MetricCell]:
    """The totals of a dimension, in the order of its values if it has one."""
    order = {value: position for position, value in enumerate(breakdown.dimensions[index].order)}
    margin = breakdown.margins[index]
    if order:
        return sorted(margin, key=lambda group: order.get(group.values[index] or "", len(order)))
    if breakdown.dimensions[index].name in ("day", "week", "month", "hour"):
        return sorted(margin, key=lambda group: (group.values[index] is None, group.values[index] or ""))
    return margin


def _linked(breakdown: Breakdown, group: MetricCell | None, overall: float | None) -> Block | None:
    if group is None:
        return None
    return _cell(group, overall) | {"link": _link("", breakdown.predicate(group))}


def _cell(group: MetricCell, overall: float | None) -> Block:
    wrong = group.known - group.right
    help = f"{count(group.predictions)} predictions, {count(group.known)} reviewed, {count(wrong)} wrong"
    if not group.known:
        return cell("–", f"{count(group.predictions)} predictions", help=help)
    small = f"{span(group.error)}, n {count(group.known)}"
    return cell(share(group.error.value), small, _tint(group, overall), help=help)
