"""Isolate, "Which are all of them?": an active search, page by page of yes and no, until few can be left."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import streamlit as st

from lake import slices
from lake.errors import BadInput, LakeloopError
from search_app.ui import session
from search_app.ui.components import empty_states
from search_app.ui.components.grid import add_to_slice, image_grid, save_slice, selected
from search_app.ui.components.marking import Heading, Said, marking_grid, token_of
from search_app.ui.components.report import Align, link, report, table
from search_app.ui.data import active_searches, queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images

if TYPE_CHECKING:
    from embeddings.search.saved_searches import SavedSearch, SearchProgress

PAGE = 24
EXAMPLES = 4  # shown beside the numbers, to remember what is searched for


def page() -> None:
    """The Isolate page."""
    status = queries.status(queries.stamp())
    if empty_states.nothing_to_compare(status):
        return None
    asked = session.param("search")
    if not asked:
        st.session_state.pop("_marking", None)
        return _saved()
    anew = st.session_state.get("_marking") != asked
    try:
        with st.spinner("Reading the vectors …", show_time=True):
            held = active_searches.opened(asked, anew)
    except BadInput as error:
        active_searches.work_on("")
        empty_states.empty("This search cannot be shown", escape(str(error)))
        with st.container(horizontal_alignment="center"):
            if st.button("All searches"):
                _leave()
        return None
    st.session_state["_marking"] = asked
    active_searches.work_on(asked)
    return _search(held)


def _leave() -> None:
    session.put(search=None, found=None, open=None, sel=None)
    st.rerun()


def _saved() -> None:
    """The searches of this lake, and how one begins."""
    from embeddings.search import saved_searches

    known = saved_searches.list(session.lake())
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            "An active search gathers **all images like your examples**: you say yes or no to a page of 24, "
            "it ranks the rest by what you said, and tells you when few can be left."
        )
        st.space("stretch")
        if st.button("Choose examples", type="primary", help="On Search: select an image or several, then F"):
            session.go("search")
    if not known:
        return empty_states.empty(
            "No searches yet",
            "Open an odd image or select a few, on Search or in Drill-down, and choose **Find all like these**.",
        )
    rows = [
        [
            link(one.name or f"Search {one.id}", "isolate", search=one.id),
            count(one.found),
            count(one.looked),
            f"{one.created_at:%d %b %Y, %H:%M} UTC",
        ]
        for one in known
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Search", "left", "What a person called it; it goes on where it was left"),
        ("Found", "right", "Images said to be of the kind, the examples among them"),
        ("Looked at", "right", "Images a person has seen and marked"),
        ("Begun", "left", ""),
    ]
    report([[table("Saved searches", columns, rows)]], key="searches")
    return None


def _search(held: active_searches.Held) -> None:
    with held.lock:
        search = held.search
        shown, found, progress = search.page(PAGE), [*search.positives()], search.progress()
    looking_back = session.param("found") == "1"
    _top(held, found, looking_back)
    if problem := st.session_state.pop("_marking_problem", None):
        st.error(escape(problem))
    if looking_back:
        return _found(held, found)
    token = token_of(search.id, shown)
    st.session_state["_marking_token"] = token
    marking_grid(
        shown,
        token,
        _heading(progress, found),
        turn=st.session_state.get("_marking_turn", 0),
        on_said=lambda said: _hear(held, said),
        before=dict.fromkeys(st.session_state.get("_marking_before", ()), "yes"),
    )
    if not shown:
        empty_states.empty(
            "Nothing is left to look at",
            f"Every image this search looks in is marked: {images(len(found))} of the kind. Save them above.",
        )
    if st.session_state.pop("_marking_save", False) and found:
        save_slice(_slice_name(search), ids=found)
    return None


def _hear(held: active_searches.Held, said: Said) -> None:
    """What was done on the page, before the next one is drawn. A page sent twice is marked once."""
    state = st.session_state
    if said.name == "slice":
        state["_marking_save"] = True
        return
    state["_marking_turn"] = state.get("_marking_turn", 0) + 1
    if said.token != state.get("_marking_token"):
        return
    try:
        with active_searches.marking(held) as search:
            if said.name == "undo":
                if search.undo():
                    state["_marking_before"] = active_searches.sent_before()
                else:
                    session.say("There is nothing to take back: the examples stay.")
            else:
                yes, shown = set(said.yes), search.page(PAGE)
                if token_of(search.id, shown) != said.token:  # another tab was first
                    return
                search.mark(yes=[one for one in shown if one in yes], no=[one for one in shown if one not in yes])
                active_searches.sent(said.yes)
                state["_marking_before"] = []
    except LakeloopError as error:
        state["_marking_problem"] = str(error)


def _heading(progress: SearchProgress, found: list[str]) -> Heading:
    left = "–" if progress.left is None else f"≈ {count(progress.left)}"
    span = "" if progress.left is None else f" ({count(progress.low)} to {count(progress.high)})"
    return Heading(
        found[:EXAMPLES],
        [
            (count(progress.looked), "looked at", "Images you have seen and marked"),
            (count(progress.found), "found", "Images you said yes to, and your examples"),
            (left, f"left{span}", "How many are probably still to be found, with the 95 % interval"),
        ],
        progress.advice,
        progress.stop,
    )


def _top(held: active_searches.Held, found: list[str], looking_back: bool) -> None:
    search = held.search
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
            key=f"name-{search.id}",
        ).strip()
        if name != (search.name or ""):
            with active_searches.marking(held):
                search.rename(name)
            session.wrote("search rename", search.id, {"name": name})
        if place := _place(search.id):
            st.caption(place, width="content")
            if st.button("Look everywhere", type="tertiary", help="Begin again in the whole lake with what was found"):
                active_searches.begin(examples=found)
        st.space("stretch")
        view = st.segmented_control(
            "View",
            ["Mark", "Found"],
            default="Found" if looking_back else "Mark",
            format_func=lambda one: f"Found {len(found):,}" if one == "Found" else one,
            label_visibility="collapsed",
            required=True,
            key=f"view-{search.id}",
        )
        if (view == "Found") != looking_back:
            session.put(found="1" if view == "Found" else None, open=None, sel=None)
            st.rerun()
        if queries.trees() and st.button("Whole clusters", help="Accept or refuse clusters for this search unseen"):
            session.go("drilldown", tree=queries.trees()[0]["tree"])
        label = f"Save {len(found):,} as slice"
        # Its help says no name: a name just typed would make it another button, and a click in that moment be lost.
        if st.button(label, type="primary", disabled=not found, help="Under the search's name (L)", key="save-found"):
            save_slice(_slice_name(search), ids=found)
        if found and (known := sorted({one.name for one in slices.newest(session.lake())})):
            to = st.menu_button("Add to …", known, format_func=escape, key="add-found", help="Its next version")
            if to:
                add_to_slice(to, found)


def _place(search_id: str) -> str:
    """Where it looks, when that is not the whole lake."""
    made = queries.search(search_id)
    if made["node"]:
        return f"in cluster {escape(made['node'])}"
    return f"in {escape(made['filter'][:60])}" if made["filter"] else ""


def _found(held: active_searches.Held, found: list[str]) -> None:
    rows: list[dict[str, Any]] = queries.answers_of(found)
    if not rows:
        return empty_states.empty("Nothing found yet", "Say yes to an image under **Mark**, and it is here.")
    above = st.container()
    image_grid(rows, "confidence", f"{images(len(rows))} said to be of the kind", key="found")
    picked = selected(found)  # which the grid has told by now
    if picked and above.button(f"{images(len(picked))} not of the kind", help="Say no to what is selected below"):
        with active_searches.marking(held) as search:
            search.mark(no=picked)
        active_searches.sent(())
        session.put(sel=None, open=None)
        st.rerun()
    return None


def _slice_name(search: SavedSearch) -> str:
    """The search's name as a slice may be called."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", search.name or "").strip("-._")[:80]
    return name or f"search-{search.id}"
