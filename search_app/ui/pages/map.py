"""Map, "What lies where?": images in two dimensions, to look at, encircle and take on from there."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from lake.errors import LakeloopError
from search_app.api.routes.maps import Points, points
from search_app.jobs.jobs import Job
from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.components.grid import image_grid, save_slice
from search_app.ui.components.map import corners, image_map
from search_app.ui.components.map.colours import KINDS, OUTSIDE, colours
from search_app.ui.data import queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import images

SHOWN = 10_000

_making: dict[str, Job] = {}  # by lake: one at a time


def page() -> None:
    """The Map page."""
    status = queries.status(queries.stamp())
    if empty_states.nothing_to_compare(status):
        return None
    known = _maps()
    underway = _making.get(session.lake().uri)
    if underway is not None:
        _progress()
    if not known:
        if underway is None:
            empty_states.empty(
                "No map yet",
                "A map shows every image as a point, like beside like. It is for looking: encircle what stands apart.",
            )
            with st.container(horizontal_alignment="center"), st.container(border=True, width=560):
                _form(status)
        return None
    chosen = next((one for one in known if one["id"] == session.param("map")), known[0])
    return _show(chosen, known, status)


def _maps() -> list[queries.Row]:
    return _kept(session.lake().version("maps"))


@st.cache_data(max_entries=4, show_spinner=False)
def _kept(version: int) -> list[queries.Row]:
    return list(
        session.lake()
        .sql(
            """SELECT id, embedder, node, "where" AS filter, size, fitted, created_at FROM maps
               ORDER BY created_at DESC, id DESC LIMIT 50"""
        )
        .to_pylist()
    )


def _show(made: queries.Row, known: list[queries.Row], status: dict[str, Any]) -> None:
    standing = points(session.lake(), made["id"])
    by = session.param("colour") if session.param("colour") in KINDS else "label"
    node = _coloured_by(made)
    if by == "cluster" and node is None:
        by = "label"
    where = scope.current().where()
    with st.container(horizontal=True, vertical_alignment="center", key="map-bar"):
        _choose(made, known)
        _colour(by, node is not None)
        with st.popover("New map", type="tertiary"):
            _form(status)
        st.space("stretch")
        _place(made, len(standing.places))
    try:
        shown = colours(made["id"], standing.tag, by, where, node)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return
    lasso = session.param("lasso")
    drawn = corners(lasso)
    chosen = np.zeros(0, np.int64)
    if drawn is not None:
        from embeddings.maps.maps import inside

        chosen = np.flatnonzero(inside(drawn, standing.places) & (shown.codes != OUTSIDE))
    said = image_map(made["id"], standing.tag, shown, lasso if drawn is not None else "", len(chosen))
    if said is not None and said != lasso:
        usable = said if corners(said) is not None else None
        session.put(lasso=usable, open=None, sel=None)
        st.rerun()
    if drawn is not None:
        _chosen(standing, chosen)


def _chosen(standing: Points, chosen: np.ndarray) -> None:
    """The images inside the lasso, those in its middle first."""
    if not len(chosen):
        st.caption("No image lies inside the lasso.")
        return
    places = standing.places[chosen]
    order = np.argsort(((places - places.mean(axis=0)) ** 2).sum(axis=1), kind="stable")
    ids = standing.names(chosen[order])
    if len(ids) > SHOWN:
        with st.popover(f"Save all {len(ids):,} as slice"), st.form("map-slice", border=False):
            name = st.text_input("Name", placeholder="e.g. odd corner")
            if st.form_submit_button("Save slice", type="primary"):
                save_slice(name.strip(), ids=ids)
    rows = queries.answers_of(ids[:SHOWN])
    more = f", the {SHOWN:,} nearest to its middle" if len(ids) > SHOWN else ""
    image_grid(rows, "confidence", f"{images(len(ids))} inside the lasso{more}")


def _choose(made: queries.Row, known: list[queries.Row]) -> None:
    named = {one["id"]: _name(one) for one in known}
    picked = st.selectbox(
        "Map",
        list(named),
        list(named).index(made["id"]),
        format_func=named.__getitem__,
        label_visibility="collapsed",
        width=380,
    )
    if picked and picked != made["id"]:
        session.put(map=picked, lasso=None, open=None, sel=None)
        st.rerun()


def _name(one: queries.Row) -> str:
    of = f", cluster {one['node']}" if one["node"] else f", {one['filter'][:40]}" if one["filter"] else ""
    return f"{images(one['size'])}{of}, {one['created_at']:%d %b %H:%M}"


def _colour(by: str, clustered: bool) -> None:
    offered = [one for one in KINDS if one != "cluster" or clustered]
    picked = st.segmented_control(
        "Colour by",
        offered,
        default=by,
        format_func=KINDS.__getitem__,
        label_visibility="collapsed",
        required=True,
        key=f"colour-{by}",
    )
    if picked and picked != by:
        session.put(colour=None if picked == "label" else picked)
        st.rerun()


def _coloured_by(made: queries.Row) -> str | None:
    """The node whose children colour the map: its own when that was opened, else the root of the newest tree."""
    if made["node"]:
        tree, _, path = made["node"].partition("/")
        if queries.children(tree, path):
            return str(made["node"])
    trees = queries.trees()
    return f"{trees[0]['tree']}/" if trees else None


def _place(made: queries.Row, standing: int) -> None:
    """Offers to place what came after a map of the whole lake was made."""
    embedded = _embedded(queries.stamp(), made["embedder"])
    new = embedded - standing if not made["node"] and not made["filter"] else 0
    if new > 0 and st.button(f"Place {new:,} new", help="Put new images among these; nothing moves", type="tertiary"):
        from embeddings.maps import maps

        try:
            with st.spinner("Placing …", show_time=True):
                placed = maps.place(session.lake(), made["id"])
        except LakeloopError as error:
            st.error(escape(str(error)))
            return
        session.wrote("map place", made["id"], {"placed": placed})
        st.rerun()


@st.cache_data(max_entries=8, show_spinner=False)
def _embedded(stamp: queries.Stamp, embedder: str) -> int:
    record = next((one for one in session.lake().embedders() if one.name == embedder), None)
    if record is None:
        return 0
    found = session.lake().scan("predictions", ["image_id"], f"{record.column} is not null")
    return len(found["image_id"].unique())


def _form(status: dict[str, Any]) -> None:
    current = scope.current()
    where, whole_node = current.where(), current.node and not current.chips() and not current.slice
    embedders = [one["name"] for one in status["embedders"] if one["embedded"]]
    with st.form("make-map", border=False):
        st.caption(
            f"Maps cluster {escape(current.node)} by itself: what separates its images comes out."
            if whole_node
            else "Maps the images of the present scope and filters."
            if where
            else "Maps every image of the lake."
        )
        embedder = st.selectbox("Embedder", embedders) if len(embedders) > 1 and not whole_node else embedders[0]
        seed = st.number_input("Seed", 0, 1_000_000, 0, help="The same seed gives the same map")
        if st.form_submit_button("Make map", type="primary", disabled=session.lake().uri in _making):
            how: dict[str, Any] = {"node": current.node} if whole_node else {"embedder": embedder, "where": where}
            how["seed"] = int(seed)
            _making[session.lake().uri] = Job("search_app.jobs.map_job", session.lake().uri, how)
            st.rerun()


@st.fragment(run_every=0.7)
def _progress() -> None:
    making = _making.get(session.lake().uri)
    if making is None:  # another tab has seen its end
        st.rerun(scope="app")
        return
    if making.result is not None:
        _making.pop(session.lake().uri, None)
        session.wrote("map", making.result, {name: one for name, one in making.parameters.items() if one is not None})
        session.put(map=making.result, lasso=None, open=None, sel=None)
        st.rerun(scope="app")
    if making.error is not None:
        st.error(escape(f"No map was made: {making.error}"))
        if st.button("Close"):
            _making.pop(session.lake().uri, None)
            st.rerun(scope="app")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(making.share, f"Making a map: {making.share:.0%}")
        if st.button("Cancel", type="tertiary"):
            making.cancel()
