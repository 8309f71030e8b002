"""Isolate page: active searches, in which the user marks pages of images yes or no."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import streamlit as st

from lake import slices
from lake.errors import BadInput, LakeloopError
from search_app.backend.loaded_searches import LoadedSearch, marking
from search_app.ui import session
from search_app.ui.components import empty_states
from search_app.ui.components.grid import add_to_slice, image_grid, save_slice, selected
from search_app.ui.components.marking import Heading, MarkingAction, marking_grid, token_of
from search_app.ui.components.report import Align, link, report, table
from search_app.ui.data import active_searches, queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images

if TYPE_CHECKING:
    from embeddings.search.saved_searches import SavedSearch, SearchProgress

PAGE = 24
EXAMPLES = 4  # shown beside the numbers as a reminder


def page() -> None:
    """The Isolate page."""
    status = queries.status(queries.stamp())
    if empty_states.nothing_to_compare(status):
        return None
    search_id = session.param("search")
    if not search_id:
        st.session_state.pop("_marking", None)
        return _saved()
    just_opened = st.session_state.get("_marking") != search_id
    try:
        with st.spinner("Reading the vectors …", show_time=True):
            loaded = active_searches.opened(search_id, just_opened)
    except BadInput as error:
        active_searches.work_on("")
        empty_states.empty("This search cannot be shown", escape(str(error)))
        with st.container(horizontal_alignment="center"):
            if st.button("All searches"):
                _leave()
        return None
    st.session_state["_marking"] = search_id
    active_searches.work_on(search_id)
    return _search(loaded)


def _leave() -> None:
    session.put(search=None, found=None, open=None, sel=None)
    st.rerun()


def _saved() -> None:
    """The saved searches of this lake, and how to start one."""
    from embeddings.search import saved_searches

    known = saved_searches.list(session.lake())
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            "An active search finds **all images like your examples**. You mark a page of 24 images yes or no; the "
            "search ranks the rest by your marks and tells you when few are left."
        )
        st.space("stretch")
        if st.button("Choose examples", type="primary", help="On Search: select one or more images, then press F"):
            session.go("search")
    if not known:
        return empty_states.empty(
            "No searches yet",
            "Open or select images on Search or Drill-down, and choose **Find all like these**.",
        )
    rows = [
        [
            link(search.name or f"Search {search.id}", "isolate", search=search.id),
            count(search.found),
            count(search.looked),
            f"{search.created_at:%d %b %Y, %H:%M} UTC",
        ]
        for search in known
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Search", "left", "Continues where you left it"),
        ("Found", "right", "Images marked yes, including the examples"),
        ("Marked", "right", "Images marked yes or no"),
        ("Created", "left", ""),
    ]
    report([[table("Saved searches", columns, rows)]], key="searches")
    return None


def _search(loaded: LoadedSearch) -> None:
    with loaded.lock:
        search = loaded.search
        shown, positives, progress = search.page(PAGE), [*search.positives()], search.progress()
    shows_found = session.param("found") == "1"
    _top(loaded, positives, shows_found)
    if problem := st.session_state.pop("_marking_problem", None):
        st.error(escape(problem))
    if shows_found:
        return _found(loaded, positives)
    token = token_of(search.id, shown)
    st.session_state["_marking_token"] = token
    marking_grid(
        shown,
        token,
        _heading(progress, positives),
        turn=st.session_state.get("_marking_turn", 0),
        on_action=lambda action: _handle(loaded, action),
        before=dict.fromkeys(st.session_state.get("_marking_before", ()), "yes"),
    )
    if not shown:
        empty_states.empty(
            "All images are marked",
            f"Every image in this search is marked; {images(len(positives))} yes. Save them as a slice above.",
        )
    if st.session_state.pop("_marking_save", False) and positives:
        save_slice(_slice_name(search), ids=positives)
    return None


def _handle(loaded: LoadedSearch, action: MarkingAction) -> None:
    """Carries out an action before the next page is drawn. A page that is sent twice is marked once."""
    state = st.session_state
    if action.name == "slice":
        state["_marking_save"] = True
        return
    state["_marking_turn"] = state.get("_marking_turn", 0) + 1
    if action.token == state.get("_marking_token"):
        try:
            _undo(loaded) if action.name == "undo" else _mark(loaded, action)
        except LakeloopError as error:
            state["_marking_problem"] = str(error)


@session.handler("search mark")
def _undo(loaded: LoadedSearch) -> None:
    with marking(session.lake(), loaded) as search:
        undone = search.undo()
    if undone:
        st.session_state["_marking_before"] = active_searches.sent_before()
        session.wrote(search.id, {"undone": True})
    else:
        session.say("There is nothing to undo. The examples stay.")


@session.handler("search mark")
def _mark(loaded: LoadedSearch, action: MarkingAction) -> None:
    with marking(session.lake(), loaded) as search:
        yes, shown = set(action.yes), search.page(PAGE)
        if token_of(search.id, shown) != action.token:  # another tab has marked this page
            return
        marked = {"yes": [id for id in shown if id in yes], "no": [id for id in shown if id not in yes]}
        search.mark(**marked)
    active_searches.sent(action.yes)
    st.session_state["_marking_before"] = []
    session.wrote(search.id, {answer: len(ids) for answer, ids in marked.items()})


@session.handler("search mark")
def _mark_no(loaded: LoadedSearch, image_ids: list[str]) -> None:
    """Takes back images that were marked yes."""
    with marking(session.lake(), loaded) as search:
        search.mark(no=image_ids)
    active_searches.sent(())
    session.wrote(search.id, {"no": len(image_ids)})
    session.put(sel=None, open=None)
    st.rerun()


@session.handler("search rename")
def _rename(loaded: LoadedSearch, name: str) -> None:
    with marking(session.lake(), loaded) as search:
        search.rename(name)
    session.wrote(search.id, {"name": name})


def _heading(progress: SearchProgress, positives: list[str]) -> Heading:
    left = "–" if progress.left is None else f"≈ {count(progress.left)}"
    span = "" if progress.left is None else f" ({count(progress.low)} to {count(progress.high)})"
    return Heading(
        positives[:EXAMPLES],
        [
            (count(progress.looked), "marked", "Images you marked yes or no"),
            (count(progress.found), "found", "Images you marked yes, and your examples"),
            (left, f"left{span}", "Estimated number of images left to find, with the 95 % interval"),
        ],
        progress.advice,
        progress.stop,
    )


def _top(loaded: LoadedSearch, positives: list[str], shows_found: bool) -> None:
    search = loaded.search
    with st.container(horizontal=True, vertical_alignment="center", key="search-actions"):
        if st.button("All searches", type="tertiary"):
            _leave()
        st.markdown("›", width="content")
        name = st.text_input(
            "Name",
            search.name or "",
            placeholder="Name this search",
            label_visibility="collapsed",
            width=230,
            disabled=not session.may("edit"),
            key=f"name-{search.id}",
        ).strip()
        if name != (search.name or ""):
            _rename(loaded, name)
        if scope := _scope(search.id):
            st.caption(scope, width="content")
            if st.button("Search the whole lake", type="tertiary", help="Start a new search with the images found"):
                active_searches.begin(examples=positives)
        st.space("stretch")
        view = st.segmented_control(
            "View",
            ["Mark", "Found"],
            default="Found" if shows_found else "Mark",
            format_func=lambda name: f"Found {len(positives):,}" if name == "Found" else name,
            label_visibility="collapsed",
            required=True,
            key=f"view-{search.id}",
        )
        if (view == "Found") != shows_found:
            session.put(found="1" if view == "Found" else None, open=None, sel=None)
            st.rerun()
        if queries.trees() and st.button("Whole clusters", help="Accept or refuse whole clusters for this search"):
            session.go("drilldown", tree=queries.trees()[0]["tree"])
        label = f"Save {len(positives):,} as slice"
        # Its help must not contain the name: a name just typed would change the button and lose the click.
        help = "Uses the name of the search (L)"
        if st.button(label, type="primary", disabled=not positives, help=help, key="save-found"):
            save_slice(_slice_name(search), ids=positives)
        if positives and (known := sorted({slice_.name for slice_ in slices.newest(session.lake())})):
            to = st.menu_button("Add to …", known, format_func=escape, key="add-found", help="Saves the next version")
            if to:
                add_to_slice(to, positives)


def _scope(search_id: str) -> str:
    """Where the search looks; "" for the whole lake."""
    row = queries.search(search_id)
    if row["node"]:
        return f"in cluster {escape(row['node'])}"
    return f"in {escape(row['filter'][:60])}" if row["filter"] else ""


def _found(loaded: LoadedSearch, positives: list[str]) -> None:
    rows: list[dict[str, Any]] = queries.predictions_of(positives)
    if not rows:
        return empty_states.empty("Nothing found yet", "Mark images yes under **Mark**. They appear here.")
    above = st.container()
    image_grid(rows, "confidence", f"{images(len(rows))} marked yes", key="found")
    marked = selected(positives)
    if marked and above.button(f"Mark {images(len(marked))} no", help="Marks the images selected below"):
        _mark_no(loaded, marked)
    return None


def _slice_name(search: SavedSearch) -> str:
    """The name of the search, made valid as the name of a slice."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", search.name or "").strip("-._")[:80]
    return name or f"search-{search.id}"
