"""Error by one or two dimensions, as a heat table; every cell leads to its answers."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from lake.analytics.metrics import Breakdown, MetricCell
from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.components.report import Block, Link, link, report
from search_app.ui.components.report.tables import cell, heat
from search_app.ui.data import analysis
from search_app.ui.text.numbers import count, percent, share, span

ROWS, COLUMNS = 60, 14
NONE = "–"
_COLUMNS = ("wrong", "95 % interval", "judged", "answers", "confidence")


def show(where: str | None) -> None:
    """The view."""
    known = analysis.names()
    asked = [one for one in session.param("dim").split(",") if one in known][:2] or known[:1]
    with st.container(horizontal=True, vertical_alignment="bottom", key="dimensions"):
        first = st.selectbox("Rows", known, known.index(asked[0]), format_func=_title, width=260)
        others = ["", *(one for one in known if one != first)]
        at = others.index(asked[1]) if len(asked) > 1 and asked[1] in others else 0
        second = st.selectbox(
            "Columns", others, at, format_func=lambda one: _title(one) if one else "none: rates and counts", width=260
        )
    chosen = tuple(one for one in (first, second) if one)
    if list(chosen) != asked:
        session.put(dim=",".join(chosen))
    found = analysis.by(chosen, where)
    if not found.cells:
        return empty_states.empty("No answer has a value here", "Choose another dimension, or take a filter away.")
    more = f" {count(found.left_out)} smaller groups are not shown." if found.left_out else ""
    if len(chosen) == 1:
        return report([[one(found, f"Error by {found.dimensions[0].title}", where, more)]], key="dimensions-one")
    return report([[_two(found, more)]], key="dimensions-two")


def _title(name: str) -> str:
    return name.removeprefix("metadata.").replace("_", " ") + (" (metadata)" if name.startswith("metadata.") else "")


def one(found: Breakdown, title: str, where: str | None, more: str = "", most: int = ROWS) -> Block:
    """A row a value: error with its interval, and counts."""
    usual = found.whole.error
    rows = [(_name(found, each), _facts(each, usual.value, each)) for each in found.cells[:most]]
    rows.append(("all", _facts(found.whole, usual.value, None)))
    unseen = len(found.cells) - most
    more += f" {unseen} more under “By dimension”." if unseen > 0 else ""
    note = f"Strong orange: surely worse than all.{more}"
    return heat(title, found.dimensions[0].title, _COLUMNS, rows, note)


def _facts(each: MetricCell, usual: float | None, row: MetricCell | None) -> list[Block | None]:
    error = each.error
    sure = "–" if each.confidence is None else f"{each.confidence:.2f}"
    return [
        cell(percent(error), share=_tint(each, usual) if row is not None else None),
        cell(span(error)),
        cell(count(each.known)),
        cell(count(each.answers)),
        cell(sure),
    ]


def _tint(each: MetricCell, usual: float | None) -> float | None:
    """How strongly a cell is tinted: fully where even its interval's lower end is above the whole's rate."""
    error = each.error
    if error.value is None or error.low is None or usual is None or error.value <= usual:
        return None
    return max(0.25, error.value) if error.low > usual else 0.12


def _name(found: Breakdown, each: MetricCell) -> Link | str:
    text = NONE if each.values[0] is None else each.values[0]
    return _link(text, found.predicate(each)) or text


def _link(text: str, predicate: str | None) -> Link | None:
    if predicate is None:
        return None
    mine = scope.current().sql
    return link(text, "search", where=f"({mine}) AND {predicate}" if mine else predicate)


def _two(found: Breakdown, more: str) -> Block:
    rows, columns = (_ordered(found, place) for place in (0, 1))
    kept = columns[:COLUMNS]
    at = {each.values: each for each in found.cells}
    usual = found.whole.error.value
    lines = []
    for row in rows[:ROWS]:
        value = row.values[0]
        cells = [_cell(found, at.get((value, column.values[1])), usual) for column in kept]
        lines.append((NONE if value is None else value, [*cells, _plain(row, usual)]))
    lines.append(("all", [*(_plain(column, usual) for column in kept), _plain(found.whole, usual)]))
    heads = [NONE if column.values[1] is None else column.values[1] for column in kept]
    cut = len(rows) - ROWS, len(columns) - COLUMNS
    more += "".join(
        f" {n} more {what} are not shown." for n, what in zip(cut, ("rows", "columns"), strict=True) if n > 0
    )
    note = (
        "Share of judged answers that are wrong; below it the 95 % interval and how many are judged. "
        f"Strong orange: surely worse than all.{more}"
    )
    names = [one.title for one in found.dimensions]
    return heat(f"Error by {names[0]} and {names[1]}", f"{names[0]} \\ {names[1]}", [*heads, "all"], lines, note)


def _ordered(found: Breakdown, place: int) -> Sequence[MetricCell]:
    """The margin of a dimension in its own order, where it has one."""
    order = {value: at for at, value in enumerate(found.dimensions[place].order)}
    margin = found.margins[place]
    if order:
        return sorted(margin, key=lambda each: order.get(each.values[place] or "", len(order)))
    if found.dimensions[place].name in ("day", "week", "month", "hour"):
        return sorted(margin, key=lambda each: (each.values[place] is None, each.values[place] or ""))
    return margin


def _cell(found: Breakdown, each: MetricCell | None, usual: float | None) -> Block | None:
    if each is None:
        return None
    return _plain(each, usual) | {"link": _link("", found.predicate(each))}


def _plain(each: MetricCell, usual: float | None) -> Block:
    help = f"{count(each.answers)} answers, {count(each.known)} judged, {count(each.known - each.right)} wrong"
    if not each.known:
        return cell("–", f"{count(each.answers)} answers", help=help)
    small = f"{span(each.error)}, n {count(each.known)}"
    return cell(share(each.error.value), small, _tint(each, usual), help=help)
