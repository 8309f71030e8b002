"""SQL, "Ask anything": an editor with the schema at hand, the answer as rows, as a chart, and as images."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import streamlit as st

from lake.errors import LakeloopError
from lake.sql import saved_queries
from lake.sql.columnar import SECRETS
from lake.storage import schema, views
from search_app.ui import session
from search_app.ui.components import empty_states
from search_app.ui.components.grid import image_grid
from search_app.ui.data import running_query
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count

if TYPE_CHECKING:
    from lake.sql.sandbox.results import QueryResult

FIRST = "SELECT label, count(*) AS answers, round(avg(confidence), 3) AS confidence\nFROM answers GROUP BY label ORDER BY answers DESC"  # noqa: E501
# A grid of more is not looked at, and a chart of more not read.
MOST_IMAGES = 10_000
MOST_BARS = 200
EVERY_SECONDS = 0.4
_PLACES = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|\$([A-Za-z_]\w*)")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")


def page() -> None:
    """The SQL page."""
    if not session.may("sql"):
        return empty_states.empty("This key may not ask SQL", "Log in with a key that has the scope sql.")
    state = st.session_state
    if "ask-sql" not in state:
        state["ask-sql"] = session.param("sql") or FIRST
    editor, side = st.columns([3, 1], gap="medium")
    with side:
        _schema()
    with editor:
        st.text_area("SELECT", key="ask-sql", height=190, help="One SELECT; $name is a parameter.")
        parameters = _parameters(state["ask-sql"])
        with st.container(horizontal=True, vertical_alignment="center"):
            running = _job() is not None and not _job().done  # type: ignore[union-attr]
            if st.button("Run", type="primary", disabled=running, key="ask-run"):
                _run(state["ask-sql"], parameters)
            _saving(state["ask-sql"], parameters)
            _loading()
            _history()
        _outcome()
    return None


def _job() -> running_query.Job | None:
    return st.session_state.get("ask-job")


def _run(sql: str, parameters: dict[str, Any]) -> None:
    session.put(sql=sql if len(sql) <= 2_000 else None, open=None, sel=None)
    email = st.user.get("email")
    key_id = st.context.headers.get("X-Lakeloop-Key")
    user = None if email is None else str(email)
    st.session_state["ask-job"] = running_query.begin(session.lake(), sql, parameters, key_id, user)
    st.rerun()


def _schema() -> None:
    """One table or view at a time, with what its columns mean."""
    docs = {name: doc for name, (doc, _) in views.VIEWS.items()} | {one.name: one.doc for one in schema.TABLES.values()}
    name = st.selectbox("Tables and views", list(docs), key="ask-table")
    with st.container(height=430, border=False):
        st.caption(escape(docs[name]))
        promoted = session.lake().promoted()
        if name in schema.TABLES:
            lines = [*_meanings(name).items()]
            if name == "predictions":
                lines += [(column, "declared at init") for column in promoted]
        else:
            st.code(views.VIEWS[name][1], language="sql", wrap_lines=True)
            known = _meanings(name) | dict.fromkeys(promoted, "declared at init")
            lines = [(column, known.get(column, kind.lower())) for column, kind in views.columns(name, promoted)]
        st.markdown("\n".join(f"- `{column}` {escape(doc)}" for column, doc in lines))


def _meanings(name: str) -> dict[str, str]:
    """What the columns mean of a table, or of the tables that a view reads: the first one that has the column says."""
    if name in schema.TABLES:
        shown = [c for c in schema.TABLES[name].columns if c.type != "blob" and (name, c.name) not in SECRETS]
        return {c.name: c.doc for c in shown}
    found: dict[str, str] = {}
    text = views.VIEWS[name][1]
    for read in sorted(views.reads(text), key=text.index):
        found = _meanings(read) | found
    return found


def _parameters(sql: str) -> dict[str, Any]:
    """A field for each $name of the query; a value that reads as JSON is no text."""
    names = list(dict.fromkeys(found[1] for found in _PLACES.finditer(sql) if found[1]))
    given: dict[str, Any] = {}
    if names:
        for name, column in zip(names, st.columns(min(4, max(2, len(names)))) * len(names), strict=False):
            text = column.text_input(f"${name}", key=f"ask-param-{name}")
            try:
                given[name] = json.loads(text, parse_constant=str)
            except ValueError:
                given[name] = text
    return given


def _saving(sql: str, parameters: dict[str, Any]) -> None:
    with st.popover("Save"):
        name = st.text_input("Name", key="ask-name", placeholder="low-confidence")
        said = st.text_input("What it answers", key="ask-description")
        if st.button("Save", key="ask-save", disabled=not name.strip()):
            try:
                saved_queries.save(session.lake(), name.strip(), sql, parameters, said, replacing=True)
            except LakeloopError as error:
                st.error(escape(str(error)))
            else:
                session.wrote("query save", name.strip(), {"sql": sql[: saved_queries.LOGGED_CHARACTERS]})
                session.say(f"Saved as {escape(name.strip())}")
                st.rerun()


def _loading() -> None:
    saved = saved_queries.list(session.lake())
    with st.popover("Saved", disabled=not saved):
        for one in saved:
            st.button(
                escape(one.name), key=f"ask-load-{one.name}", help=escape(one.description or
                one.sql[:300]), type="tertiary", on_click=_put, args=(one.sql, one.parameters),
            )  # fmt: skip


def _history() -> None:
    with st.popover("History"):
        for place, one in enumerate(saved_queries.history(session.lake(), 20)):
            end = "failed" if one.error else f"{one.rows or 0:,} rows"
            text = " ".join(one.sql.split())
            st.button(
                f"{one.timestamp:%d %b %H:%M} · {end} · {escape(text[:70])}",
                key=f"ask-past-{place}", type="tertiary", on_click=_put, args=(one.sql, one.parameters),
            )  # fmt: skip


def _put(sql: str, parameters: Any) -> None:
    st.session_state["ask-sql"] = sql
    for name, value in parameters.items() if isinstance(parameters, dict) else ():
        st.session_state[f"ask-param-{name}"] = value if isinstance(value, str) else json.dumps(value)


def _outcome() -> None:
    job = _job()
    if job is None:
        return
    if not job.done:
        _waiting()
    elif job.answer is None:
        st.code(job.error or "", language=None)
    else:
        _answer(job.answer)


@st.fragment(run_every=EVERY_SECONDS)
def _waiting() -> None:
    """Seconds, and a way to stop; the whole page runs again once there is an answer."""
    job = _job()
    if job is None or job.done:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f":material/hourglass_top: running for {job.seconds():.0f} s", width="content")
        if st.button("Cancel", key="ask-cancel"):
            job.cancel()


def _answer(found: QueryResult) -> None:
    rows = found.table.num_rows
    cut = ", and there are more" if found.truncated else ""
    st.caption(f"{count(rows)} {'row' if rows == 1 else 'rows'}{cut} · {found.seconds:.2f} s")
    images = _images(found)
    table, chart, *grid = st.tabs(["Rows", "Chart", *(["Images"] if images else [])], key="ask-tab", on_change="rerun")
    if table.open:
        with table:
            st.dataframe(_shown(found), hide_index=True, height=min(560, 38 + 35 * max(rows, 1)))
    if chart.open:
        with chart:
            _chart(found)
    if grid and grid[0].open:
        with grid[0]:
            image_grid(images, "confidence", key="asked")


def _shown(found: QueryResult) -> Any:
    """A data frame with columns told apart, and what browsers cannot show as text."""
    from lake.sql.tables import plain

    columns: dict[str, list[Any]] = {}
    for column, values in zip(found.columns, found.table.columns, strict=True):
        name, number = column["name"], 2
        while name in columns:
            name, number = f"{column['name']} ({number})", number + 1
        said = [plain(value) for value in values.to_pylist()]
        columns[name] = [json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list) else v for v in said]
    import polars as pl

    return pl.DataFrame(columns, strict=False)


def _chart(found: QueryResult) -> None:
    """Bars, or a line over time: the first column that is no number against the numbers."""
    frame = _shown(found).head(MOST_BARS)
    numbers = [name for name, kind in frame.schema.items() if kind.is_numeric()]
    others = [name for name in frame.columns if name not in numbers]
    if not numbers or frame.height < 2:
        st.caption("A chart needs two rows, and a column of numbers.")
        return
    across = others[0] if others else frame.columns[0]
    left, right = st.columns(2)
    x = left.selectbox("Across", frame.columns, index=frame.columns.index(across), key="ask-x")
    offered = [name for name in numbers if name != x] or numbers
    up = right.multiselect("Up", offered, default=offered[:1], key="ask-y")
    if up:
        kind = next(c["type"] for c in found.columns if c["name"] == x) if x in found.table.column_names else ""
        draw = st.line_chart if kind.startswith(("DATE", "TIMESTAMP")) else st.bar_chart
        draw(frame, x=x, y=up)


def _images(found: QueryResult) -> list[dict[str, Any]]:
    """One row an image of a column image_id, in the answer's order, for the grid."""
    names = found.table.column_names
    if "image_id" not in names:
        return []
    wanted = [name for name in ("image_id", "label", "confidence") if names.count(name) == 1]
    if "image_id" not in wanted:
        return []
    rows: dict[str, dict[str, Any]] = {}
    for row in found.table.select(wanted).to_pylist():
        if isinstance(row["image_id"], str) and _IMAGE_ID.fullmatch(row["image_id"]):
            rows.setdefault(row["image_id"], {"label": None, "confidence": None, **row})
        if len(rows) == MOST_IMAGES:
            break
    return list(rows.values())
