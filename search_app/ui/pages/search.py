"""Search, "Show me its like": an image, some images or words go in, the most similar images come out.

With nothing to search for it shows a random check, which is where a stranger finds something to search for.
"""

from __future__ import annotations

import random

import streamlit as st

from lake.errors import LakeloopError
from search_app.backend import model_cache
from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.components.dropzone import Change, query_tray
from search_app.ui.components.grid import image_grid
from search_app.ui.data import queries
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import images

SIZES = (50, 200, 1_000, 10_000)
DEFAULT_SIZE = 200
ORDERS = {
    "random": "Random check",
    "newest": "Newest",
    "unsure": "Least confident",
    "errors": "Known errors",
    "complaints": "Complaints",
}


def page() -> None:
    """The Search page."""
    status = queries.status(queries.stamp())
    if not status["images"]:
        return empty_states.no_images()
    ready = [one for one in status["embedders"] if one["embedded"]]
    query, ids, text = session.param("q"), tuple(session.params().get("like", ())), session.param("text")
    if not ready:
        st.info(f"Nothing is embedded yet, so nothing can be searched. Run `{for_this_lake('embed')}`")
        _check(_size())
        return None
    embedder, k = _controls(ready, query, ids)
    if query or ids or text:
        _results(k, embedder, query, ids, text)
    else:
        _check(k)
    model_cache.preload(session.lake(), embedder)
    return None


def _controls(ready: list[queries.Row], query: str, ids: tuple[str, ...]) -> tuple[str, int]:
    """The query tray and its settings; changes go to the URL, which every run starts from."""
    names = [one["name"] for one in ready]
    speaks = [one for one in names if one in queries.text_embedders(queries.stamp())]
    embedder = session.param("by") if session.param("by") in names else names[0]
    if session.param("text") and speaks and embedder not in speaks:
        embedder = speaks[0]  # words can only be asked of those that know them
    k = _size()
    st.session_state.update({"words": session.param("text"), "by-choice": embedder, "k-choice": k})
    left, right = st.columns([3, 2], gap="medium", vertical_alignment="bottom")
    with left:
        _change(query_tray(query, ids), ids)
    with right, st.container(horizontal=True, vertical_alignment="bottom"):
        if speaks:
            silent = "" if embedder in speaks else f"Searches with {escape(speaks[0])}, which embeds text too"
            st.text_input(
                "Or in words", key="words", on_change=_say, placeholder="e.g. a red circle", help=silent or None
            )
        if len(names) > 1:
            st.selectbox("Embedder", names, key="by-choice", on_change=_by)
        st.selectbox("At most", SIZES, key="k-choice", on_change=_many, format_func=images, width=170)
    return embedder, k


def _size() -> int:
    asked = session.param("k")
    return int(asked) if asked in map(str, SIZES) else DEFAULT_SIZE


def _say() -> None:
    session.put(text=st.session_state["words"].strip(), q=None, like=None, open=None, sel=None)


def _by() -> None:
    chosen = st.session_state["by-choice"]
    keeps = chosen in queries.text_embedders(queries.stamp())
    session.put(by=chosen, text=session.param("text") if keeps else None, open=None, sel=None)


def _many() -> None:
    chosen = st.session_state["k-choice"]
    session.put(k=None if chosen == DEFAULT_SIZE else chosen)


def _change(change: Change | None, ids: tuple[str, ...]) -> None:
    if change is None:
        return
    if change.uploaded:
        session.put(q=change.uploaded, like=None, text=None, open=None, sel=None)
    elif change.removed in ids:
        session.put(like=[one for one in ids if one != change.removed], open=None, sel=None)
    else:
        session.put(q=None, open=None, sel=None)
    st.rerun()


def _results(k: int, embedder: str, query: str, ids: tuple[str, ...], text: str) -> None:
    if query and session.query_images().get(query) is None:
        return empty_states.empty("This query image is no longer kept", "Upload it again: the newest 1,000 are kept.")
    try:
        with st.spinner("Searching …", show_time=True):
            rows = queries.similar(k, scope.current().where(), embedder, query, ids, text)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return None
    if not rows:
        return empty_states.nothing_passes()
    what = f"“{text}”" if text else "this image" if query or len(ids) == 1 else f"the mean of {len(ids)} images"
    return image_grid(rows, "similarity", f"{images(len(rows))} most like {what}")


def _check(k: int) -> None:
    """Images of the scope, to look at and to search from."""
    order = session.param("show") if session.param("show") in ORDERS else "random"
    offered = [one for one in ORDERS if one != "complaints" or one == order or queries.verdicts(None).get("incorrect")]
    seed = int(session.param("seed")) if session.param("seed").isdecimal() else 1
    with st.container(horizontal=True, vertical_alignment="center"):
        chosen = st.segmented_control(
            "Show",
            offered,
            default=order,
            format_func=ORDERS.__getitem__,
            label_visibility="collapsed",
            required=True,
        )
        if order == "random" and st.button("Another sample", type="tertiary"):
            session.put(seed=random.randrange(2, 10_000), open=None, sel=None)
            st.rerun()
    if chosen and chosen != order:
        session.put(show=None if chosen == "random" else chosen, seed=None, open=None, sel=None)
        st.rerun()
    where = scope.current().where()
    totals = queries.totals(where)
    answered = bool(totals["answers"])  # what is checked is the answers, wherever there are any
    rows = queries.sample(f"{queries.every(where)} AND model IS NOT NULL" if answered else where, order, seed, k)
    if not rows:
        if order == "errors":
            return empty_states.empty("No known errors here", "No answer inside these filters disagrees with a label.")
        if order == "complaints":
            return empty_states.empty(
                "No complaints here", "No customer calls an answer inside these filters incorrect."
            )
        return empty_states.nothing_passes()
    title = {
        "random": "drawn at random",
        "newest": "newest first",
        "unsure": "least confident first",
        "errors": "known to be wrong, most confident first",
        "complaints": "called incorrect by a customer, latest first",
    }[order]
    what = " with an answer" if answered and totals["images"] != totals["answers"] else ""
    return image_grid(rows, "confidence", f"{images(len(rows))}{what}, {title}")
