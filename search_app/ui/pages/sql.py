"""SQL page: an editor with the schema beside it; results as rows, as a chart and as images."""

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

FIRST = "SELECT label, count(*) AS predictions, round(avg(confidence), 3) AS confidence\nFROM predictions GROUP BY label ORDER BY predictions DESC"  # noqa: E501
# More images are not worth scrolling, and more bars cannot be read.
MOST_IMAGES = 10_000
MOST_BARS = 200
EVERY_SECONDS = 0.4
_TOKENS = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|\$([A-Za-z_]\w*)")
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")


def page() -> None:
    """The SQL page."""
    if not session.may("sql"):
        return empty_states.empty("Your key does not allow SQL", "Log in with a key that has the scope sql.")
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
            query = _query()
            running = query is not None and not query.done
            if st.button("Run", type="primary", disabled=running, key="ask-run"):
                _run(state["ask-sql"], parameters)
            _saving(state["ask-sql"], parameters)
            _loading()
            _history()
        _outcome()
    return None


def _query() -> running_query.RunningQuery | None:
    return st.session_state.get("ask-query")


@session.handler("sql")
def _run(sql: str, parameters: dict[str, Any]) -> None:
    session.put(sql=sql if len(sql) <= 2_000 else None, open=None, sel=None)
    by = session.starter()
    st.session_state["ask-query"] = running_query.begin(session.lake(), sql, parameters, by.key_id, by.user)
    st.rerun()


def _schema() -> None:
    """One table or view at a time, with the meaning of its columns."""
    docs = {name: doc for name, (doc, _) in views.VIEWS.items()} | {
        table.name: table.doc for table in schema.TABLES.values()
    }
    name = st.selectbox("Tables and views", list(docs), key="ask-table")
    with st.container(height=430, border=False):
        st.caption(escape(docs[name]))
        promoted = session.lake().promoted()
        if name in schema.TABLES:
            lines = [*_meanings(name).items()]
            if name == "samples":
                lines += [(column, "declared at init") for column in promoted]
        else:
            st.code(views.VIEWS[name][1], language="sql", wrap_lines=True)
            known = _meanings(name) | dict.fromkeys(promoted, "declared at init")
            lines = [(column, known.get(column, kind.lower())) for column, kind in views.columns(name, promoted)]
        st.markdown("\n".join(f"- `{column}` {escape(doc)}" for column, doc in lines))


def _meanings(name: str) -> dict[str, str]:
    """The meaning of each column of a table, or of a view: that of the first table it reads which has the column."""
    if name in schema.TABLES:
        columns = [c for c in schema.TABLES[name].columns if c.type != "blob" and (name, c.name) not in SECRETS]
        return {c.name: c.doc for c in columns}
    meanings: dict[str, str] = {}
    text = views.VIEWS[name][1]
    for read in sorted(views.reads(text), key=text.index):
        meanings = _meanings(read) | meanings
    return meanings


def _parameters(sql: str) -> dict[str, Any]:
    """A field for each $name of the query. A value that is valid JSON is parsed; any other is text."""
    names = list(dict.fromkeys(match[1] for match in _TOKENS.finditer(sql) if match[1]))
    parameters: dict[str, Any] = {}
    if names:
        for name, column in zip(names, st.columns(min(4, max(2, len(names)))) * len(names), strict=False):
            text = column.text_input(f"${name}", key=f"ask-param-{name}")
            try:
                parameters[name] = json.loads(text, parse_constant=str)
            except ValueError:
                parameters[name] = text
    return parameters


def _saving(sql: str, parameters: dict[str, Any]) -> None:
    with st.popover("Save"):
        name = st.text_input("Name", key="ask-name", placeholder="low-confidence")
        description = st.text_input("Description", key="ask-description")
        if st.button("Save", key="ask-save", disabled=not name.strip()):
            _save(name.strip(), sql, parameters, description)


@session.handler("query save")
def _save(name: str, sql: str, parameters: dict[str, Any], description: str) -> None:
    try:
        saved_queries.save(session.lake(), name, sql, parameters, description, replacing=True)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return
    session.wrote(name, {"sql": sql[: saved_queries.LOGGED_CHARACTERS]})
    session.say(f"Saved as {escape(name)}.")
    st.rerun()


def _loading() -> None:
    saved = saved_queries.list(session.lake())
    with st.popover("Saved", disabled=not saved):
        for query in saved:
            st.button(
                escape(query.name), key=f"ask-load-{query.name}", help=escape(query.description or
                query.sql[:300]), type="tertiary", on_click=_put, args=(query.sql, query.parameters),
            )  # fmt: skip


def _history() -> None:
    with st.popover("History"):
        for i, query in enumerate(saved_queries.history(session.lake(), 20)):
            outcome = "failed" if query.error else f"{query.rows or 0:,} rows"
            text = " ".join(query.sql.split())
            st.button(
                f"{query.timestamp:%d %b %H:%M} · {outcome} · {escape(text[:70])}",
                key=f"ask-past-{i}", type="tertiary", on_click=_put, args=(query.sql, query.parameters),
            )  # fmt: skip


def _put(sql: str, parameters: Any) -> None:
    st.session_state["ask-sql"] = sql
    for name, value in parameters.items() if isinstance(parameters, dict) else ():
        st.session_state[f"ask-param-{name}"] = value if isinstance(value, str) else json.dumps(value)


def _outcome() -> None:
    query = _query()
    if query is None:
        return
    if not query.done:
        _waiting()
    elif query.result is None:
        st.code(query.error or "", language=None)
    else:
        _show(query.result)


@st.fragment(run_every=EVERY_SECONDS)
def _waiting() -> None:
    """The seconds so far, and a button to cancel. The whole page runs again when the query is done."""
    query = _query()
    if query is None or query.done:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f":material/hourglass_top: running for {query.seconds():.0f} s", width="content")
        if st.button("Cancel", key="ask-cancel"):
            query.cancel()


def _show(result: QueryResult) -> None:
    rows = result.table.num_rows
    cut = ", more not shown" if result.truncated else ""
    st.caption(f"{count(rows)} {'row' if rows == 1 else 'rows'}{cut} · {result.seconds:.2f} s")
    images = _images(result)
    table, chart, *grid = st.tabs(["Rows", "Chart", *(["Images"] if images else [])], key="ask-tab", on_change="rerun")
    if table.open:
        with table:
            st.dataframe(_frame(result), hide_index=True, height=min(560, 38 + 35 * max(rows, 1)))
    if chart.open:
        with chart:
            _chart(result)
    if grid and grid[0].open:
        with grid[0]:
            image_grid(images, "confidence", key="result")


def _frame(result: QueryResult) -> Any:
    """A data frame with unique column names; nested values become JSON text.

    The browser writes the cells into a CSV file as they are, so that text like a formula has its apostrophe already.
    A column with a number that JavaScript would change is text. Raises BadInput as `tables.values`.
    """
    from lake import spreadsheets
    from lake.sql.tables import plain, values

    columns: dict[str, list[Any]] = {}
    for column, arrow_column in zip(result.columns, result.table.columns, strict=True):
        own = spreadsheets.cell(column["name"])
        name, number = own, 2
        while name in columns:
            name, number = f"{own} ({number})", number + 1
        plain_values = [plain(value) for value in values(arrow_column, column["name"])]
        texts = [json.dumps(v, ensure_ascii=False) if isinstance(v, dict | list) else v for v in plain_values]
        if any(isinstance(v, str) for v in texts):
            texts = [v if v is None or isinstance(v, str) else str(v) for v in texts]
        columns[name] = [spreadsheets.cell(v) if isinstance(v, str) else v for v in texts]
    import polars as pl

    return pl.DataFrame(columns, strict=False)


def _chart(result: QueryResult) -> None:
    """Bars, or a line over time: the first column that is not numeric against the numeric ones."""
    frame = _frame(result).head(MOST_BARS)
    numbers = [name for name, kind in frame.schema.items() if kind.is_numeric()]
    others = [name for name in frame.columns if name not in numbers]
    if not numbers or frame.height < 2:
        st.caption("A chart needs at least two rows and a numeric column.")
        return
    across = others[0] if others else frame.columns[0]
    left, right = st.columns(2)
    x = left.selectbox("Horizontal axis", frame.columns, index=frame.columns.index(across), key="ask-x")
    offered = [name for name in numbers if name != x] or numbers
    up = right.multiselect("Vertical axis", offered, default=offered[:1], key="ask-y")
    if up:
        kind = next(c["type"] for c in result.columns if c["name"] == x) if x in result.table.column_names else ""
        draw = st.line_chart if kind.startswith(("DATE", "TIMESTAMP")) else st.bar_chart
        draw(frame, x=x, y=up)


def _images(result: QueryResult) -> list[dict[str, Any]]:
    """One row for each image of the column image_id, in the order of the result, for the grid."""
    names = result.table.column_names
    if "image_id" not in names:
        return []
    wanted = [name for name in ("image_id", "label", "confidence") if names.count(name) == 1]
    if "image_id" not in wanted:
        return []
    rows: dict[str, dict[str, Any]] = {}
    for row in result.table.select(wanted).to_pylist():
        if isinstance(row["image_id"], str) and _IMAGE_ID.fullmatch(row["image_id"]):
            rows.setdefault(row["image_id"], {"label": None, "confidence": None, **row})
        if len(rows) == MOST_IMAGES:
            break
    return list(rows.values())
