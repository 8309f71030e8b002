"""Search page: the images most similar to images or a text; without an example, a sample."""

from __future__ import annotations

import random

import streamlit as st

from lake.errors import LakeloopError
from lake.sql.where import conjunction
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
    "random": "Random sample",
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
    ready = [embedder for embedder in status["embedders"] if embedder["embedded"]]
    query, ids, text = session.param("q"), tuple(session.params().get("like", ())), session.param("text")
    if not ready:
        st.info(f"No image has an embedding yet, so you cannot search by similarity. Run `{for_this_lake('embed')}`")
        _sample(_size())
        return None
    embedder, k = _controls(ready, query, ids)
    if query or ids or text:
        _results(k, embedder, query, ids, text)
    else:
        _sample(k)
    model_cache.preload(session.lake(), embedder)
    return None


def _controls(ready: list[queries.Row], query: str, ids: tuple[str, ...]) -> tuple[str, int]:
    """The query tray and its settings: the embedder and the number of images. Changes are written to the URL."""
    names = [embedder["name"] for embedder in ready]
    text_names = [name for name in names if name in queries.text_embedders(queries.stamp())]
    embedder = session.param("by") if session.param("by") in names else names[0]
    if session.param("text") and text_names and embedder not in text_names:
        embedder = text_names[0]  # a text needs an embedder that embeds text
    k = _size()
    st.session_state.update({"words": session.param("text"), "by-choice": embedder, "k-choice": k})
    left, right = st.columns([3, 2], gap="medium", vertical_alignment="bottom")
    with left:
        _change(query_tray(query, ids), ids)
    with right, st.container(horizontal=True, vertical_alignment="bottom"):
        if text_names:
            help = None if embedder in text_names else f"Searches with {escape(text_names[0])}, which embeds text, too"
            st.text_input("Or a text", key="words", on_change=_set_text, placeholder="e.g. a red circle", help=help)
        if len(names) > 1:
            st.selectbox("Embedder", names, key="by-choice", on_change=_set_embedder)
        st.selectbox("At most", SIZES, key="k-choice", on_change=_set_size, format_func=images, width=170)
    return embedder, k


def _size() -> int:
    size = session.param("k")
    return int(size) if size in map(str, SIZES) else DEFAULT_SIZE


def _set_text() -> None:
    session.put(text=st.session_state["words"].strip(), q=None, like=None, open=None, sel=None)


def _set_embedder() -> None:
    chosen = st.session_state["by-choice"]
    embeds_text = chosen in queries.text_embedders(queries.stamp())
    session.put(by=chosen, text=session.param("text") if embeds_text else None, open=None, sel=None)


def _set_size() -> None:
    chosen = st.session_state["k-choice"]
    session.put(k=None if chosen == DEFAULT_SIZE else chosen)


def _change(change: Change | None, ids: tuple[str, ...]) -> None:
    if change is None:
        return
    if change.uploaded:
        session.put(q=change.uploaded, like=None, text=None, open=None, sel=None)
    elif change.removed in ids:
        session.put(like=[id for id in ids if id != change.removed], open=None, sel=None)
    else:
        session.put(q=None, open=None, sel=None)
    st.rerun()


def _results(k: int, embedder: str, query: str, ids: tuple[str, ...], text: str) -> None:
    if query and session.query_images().get(query) is None:
        return empty_states.empty("This query image is no longer stored", "Upload it again. The newest 1,000 are kept.")
    try:
        with st.spinner("Searching …", show_time=True):
            rows = queries.similar(k, scope.where(), embedder, query, ids, text)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return None
    if not rows:
        return empty_states.nothing_passes()
    example = f"“{text}”" if text else "this image" if query or len(ids) == 1 else f"the mean of {len(ids)} images"
    return image_grid(rows, "similarity", f"{images(len(rows))} most similar to {example}")


def _sample(k: int) -> None:
    """Images of the scope in a chosen order, to look at and to search from."""
    order = session.param("show") if session.param("show") in ORDERS else "random"
    has_complaints = order == "complaints" or queries.verdicts(None).get("incorrect")
    orders = [name for name in ORDERS if name != "complaints" or has_complaints]
    seed = int(session.param("seed")) if session.param("seed").isdecimal() else 1
    with st.container(horizontal=True, vertical_alignment="center"):
        chosen = st.segmented_control(
            "Show",
            orders,
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
    where = scope.where()
    totals = queries.totals(where)
    predicted = bool(totals["predictions"])  # images with a prediction, if there are any
    rows = queries.sample(conjunction(where, "model IS NOT NULL") if predicted else where, order, seed, k)
    if not rows:
        if order == "errors":
            return empty_states.empty("No known errors", "No prediction inside these filters differs from the label.")
        if order == "complaints":
            return empty_states.empty(
                "No complaints", "No customer reported a prediction inside these filters as incorrect."
            )
        return empty_states.nothing_passes()
    title = {
        "random": "random sample",
        "newest": "newest first",
        "unsure": "least confident first",
        "errors": "wrong predictions, most confident first",
        "complaints": "reported as incorrect by a customer, latest first",
    }[order]
    needs_hint = order not in ("errors", "complaints") and predicted and totals["images"] != totals["predictions"]
    kind = " with a prediction" if needs_hint else ""
    return image_grid(rows, "confidence", f"{images(len(rows))}{kind}, {title}")
