"""The scope bar: the slice or cluster that every page shows, the filters as chips, and their SQL.

The URL is the only state. This module draws and changes filters; filters.py defines them.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import TYPE_CHECKING

import streamlit as st

from lake.errors import BadInput
from lake.sql import where as lake_where
from search_app.security import filter_bounds
from search_app.ui import session
from search_app.ui.components.filters import Chip, Filters, command
from search_app.ui.data import queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import images

if TYPE_CHECKING:
    from lake.storage.store import Lake


def current() -> Filters:
    """The filters in the URL."""
    return Filters.from_params(session.params())


def where() -> str | None:
    """The filters in the URL as one SQL filter, checked; None for everything. Raises BadInput if it is not valid."""
    filters = current()
    problem = _problem(filters)
    if problem is not None:
        raise BadInput(problem)
    return filters.where()


def scope_bar() -> bool:
    """Draws the bar. Returns False if the SQL filter is not valid, and shows DuckDB's message."""
    filters = current()
    problem = _problem(filters)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="scope"):
        st.markdown(f"**{escape(session.lake().uri.rstrip('/').rsplit('/', 1)[-1])}**", width="content")
        for chip in filters.scope():
            st.markdown("›", width="content")
            _chip(filters, chip)
        if problem is None:
            st.caption(images(queries.totals(filters.where())["images"]), width="content")
        for chip in filters.chips():
            _chip(filters, chip)
        _filter_form(filters)
        _slice_choice(filters)
        if problem is None and filters.where():
            _sql(filters.where() or "")
    if problem is not None:
        st.error(escape(problem))
        st.caption("The filter was not applied. Change it under “+ Filter”, or remove it above.")
    return problem is None


def checked(lake: Lake, filters: Filters) -> str | None:
    """As `Filters.where`. They may come from a link that another person wrote. Raises BadInput if they are refused."""
    if filters.sql:
        filter_bounds.check(lake, filters.sql)
    where = filters.where()
    if where is not None:
        lake_where.check_foreign(lake, where, bounded=False)
    return where


@st.cache_data(max_entries=64, show_spinner=False)
def _problem_of(stamp: queries.Stamp, filters: Filters) -> str | None:
    try:
        checked(session.lake(), filters)
    except BadInput as error:
        return str(error)
    return None


def _problem(filters: Filters) -> str | None:
    return _problem_of(queries.stamp(), filters)


def _chip(filters: Filters, chip: Chip) -> None:
    text = chip.text if len(chip.text) <= 48 else chip.text[:47] + "…"
    key = f"chip-{chip.param}-{hashlib.sha1(chip.text.encode()).hexdigest()[:8]}"
    if st.button(f"{escape(text)}  ×", key=key, help="Remove this filter", wrap=False):
        _apply(filters.without(chip))


def _apply(filters: Filters) -> None:
    session.put(**filters.to_params(), open=None, sel=None)
    st.rerun()


def _slice_choice(filters: Filters) -> None:
    rows = queries.slices()
    if not rows or filters.slice:
        return
    chosen = st.menu_button(
        "Slice",
        [row["id"] for row in rows],
        format_func=lambda id: escape(id.replace("@", " v")),
        type="tertiary",
        key="choose-slice",
        help="Show one slice only",
    )
    if chosen:
        session.put(slice=chosen, open=None, sel=None)
        st.rerun()


def _filter_form(filters: Filters) -> None:
    state = hashlib.sha1(repr(filters).encode()).hexdigest()[:8]  # a new form whenever the filters changed
    with (
        st.popover("+ Filter", type="tertiary", key=f"filter-{state}"),
        st.form(f"form-{state}", border=False),
    ):
        labels, models, span = queries.labels(), queries.models(), queries.days()
        left, right = st.columns(2)
        chosen = left.multiselect("Label", sorted({*labels, *filters.labels}), default=list(filters.labels))
        by = right.multiselect("Model", sorted({*models, *filters.models}), default=list(filters.models))
        low, high = st.slider("Confidence", 0.0, 1.0, filters.confidence or (0.0, 1.0), step=0.01)
        since, until = filters.since, filters.until
        if span["first"]:
            left, right = st.columns(2)
            since = left.date_input("From day", filters.since, key=f"since-{state}", format="YYYY-MM-DD")
            until = right.date_input("To day", filters.until, key=f"until-{state}", format="YYYY-MM-DD")
        sql = st.text_area("SQL", filters.sql, height=70, placeholder="confidence < 0.6 AND source LIKE '%night%'")
        st.caption("A boolean SQL expression over the columns of table samples.")
        if st.form_submit_button("Apply", type="primary"):
            _apply(
                Filters(
                    slice=filters.slice,
                    node=filters.node,
                    labels=tuple(chosen),
                    models=tuple(by),
                    confidence=None if (low, high) == (0.0, 1.0) else (low, high),
                    since=since if isinstance(since, dt.date) else None,
                    until=until if isinstance(until, dt.date) else None,
                    sql=sql.strip(),
                )
            )


def _sql(where: str) -> None:
    with st.popover("SQL", type="tertiary"):
        st.caption("These filters as one SQL expression")
        st.code(where, language="sql", wrap_lines=True)
        st.caption("The same filters on the command line")
        st.code(command(f"search --lake {session.lake().uri} --id ID", where), language="bash", wrap_lines=True)
