"""Map page: images as points; a lasso selects images to look at, search from or save."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from lake.errors import LakeloopError
from lake.jobs.job import Job
from search_app.backend.map_points import Points, points
from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.components.grid import image_grid, save_slice
from search_app.ui.components.map import corners, image_map
from search_app.ui.components.map.colours import KINDS, OUTSIDE, colours
from search_app.ui.data import jobs, queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import images

SHOWN = 10_000


def page() -> None:
    """The Map page."""
    status = queries.status(queries.stamp())
    if empty_states.nothing_to_compare(status):
        return None
    known = _maps()
    job = _job()
    if job is not None:
        _progress(job.id)
    if not known:
        if job is None:
            empty_states.empty(
                "No map yet",
                "A map shows each image as a point, similar images close together. Draw around a group to select it.",
            )
            with st.container(horizontal_alignment="center"), st.container(border=True, width=560):
                _form(status)
        return None
    shown = next((row for row in known if row["id"] == session.param("map")), known[0])
    return _show(shown, known, status)


def _maps() -> list[queries.Row]:
    return _maps_at(session.lake().version("maps"))


@st.cache_data(max_entries=4, show_spinner=False)
def _maps_at(version: int) -> list[queries.Row]:
    return list(
        session.lake()
        .sql(
            """SELECT id, embedder, node, "where" AS filter, size, fitted, created_at FROM maps
               ORDER BY created_at DESC, id DESC LIMIT 50"""
        )
        .to_pylist()
    )


def _show(map: queries.Row, known: list[queries.Row], status: dict[str, Any]) -> None:
    placed = points(session.lake(), map["id"])
    by = session.param("colour") if session.param("colour") in KINDS else "label"
    node = _colour_node(map)
    if by == "cluster" and node is None:
        by = "label"
    where = scope.where()
    with st.container(horizontal=True, vertical_alignment="center", key="map-bar"):
        _choose(map, known)
        _colour(by, node is not None)
        with st.popover("New map", type="tertiary"):
            _form(status)
        st.space("stretch")
        _place_new(map, len(placed.positions))
    try:
        coloured = colours(map["id"], placed.tag, by, where, node)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return
    lasso = session.param("lasso")
    polygon = corners(lasso)
    chosen = np.zeros(0, np.int64)
    if polygon is not None:
        from embeddings.maps.maps import inside

        chosen = np.flatnonzero(inside(polygon, placed.positions) & (coloured.codes != OUTSIDE))
    new = image_map(map["id"], placed.tag, coloured, lasso if polygon is not None else "", len(chosen))
    if new is not None and new != lasso:
        session.put(lasso=new if corners(new) is not None else None, open=None, sel=None)
        st.rerun()
    if polygon is not None:
        _chosen(placed, chosen)


def _chosen(placed: Points, chosen: np.ndarray) -> None:
    """The images inside the lasso, those nearest to its middle first."""
    if not len(chosen):
        st.caption("No image is inside the lasso.")
        return
    places = placed.positions[chosen]
    order = np.argsort(((places - places.mean(axis=0)) ** 2).sum(axis=1), kind="stable")
    ids = placed.names(chosen[order])
    if len(ids) > SHOWN:
        with st.popover(f"Save all {len(ids):,} as slice"), st.form("map-slice", border=False):
            name = st.text_input("Name", placeholder="e.g. odd corner")
            if st.form_submit_button("Save slice", type="primary"):
                save_slice(name.strip(), ids=ids)
    rows = queries.predictions_of(ids[:SHOWN])
    more = f", the {SHOWN:,} nearest to its middle" if len(ids) > SHOWN else ""
    image_grid(rows, "confidence", f"{images(len(ids))} inside the lasso{more}")


def _choose(map: queries.Row, known: list[queries.Row]) -> None:
    titles = {row["id"]: _title(row) for row in known}
    chosen = st.selectbox(
        "Map",
        list(titles),
        list(titles).index(map["id"]),
        format_func=titles.__getitem__,
        label_visibility="collapsed",
        width=380,
    )
    if chosen and chosen != map["id"]:
        session.put(map=chosen, lasso=None, open=None, sel=None)
        st.rerun()


def _title(map: queries.Row) -> str:
    of = f", cluster {map['node']}" if map["node"] else f", {map['filter'][:40]}" if map["filter"] else ""
    return f"{images(map['size'])}{of}, {map['created_at']:%d %b %H:%M}"


def _colour(by: str, clustered: bool) -> None:
    kinds = [kind for kind in KINDS if kind != "cluster" or clustered]
    chosen = st.segmented_control(
        "Colour by",
        kinds,
        default=by,
        format_func=KINDS.__getitem__,
        label_visibility="collapsed",
        required=True,
        key=f"colour-{by}",
    )
    if chosen and chosen != by:
        session.put(colour=None if chosen == "label" else chosen)
        st.rerun()


def _colour_node(map: queries.Row) -> str | None:
    """The node whose children colour the map: the map's own node if it is split, else the root of the newest tree."""
    if map["node"]:
        tree, _, path = map["node"].partition("/")
        if queries.children(tree, path):
            return str(map["node"])
    trees = queries.trees()
    return f"{trees[0]['tree']}/" if trees else None


def _place_new(map: queries.Row, placed: int) -> None:
    """Offers to place new images in a map of the whole lake. `placed`: images that are in it."""
    embedded = _embedded(queries.stamp(), map["embedder"])
    new = embedded - placed if not map["node"] and not map["filter"] else 0
    if new > 0 and st.button(f"Place {new:,} new", help="Adds the new images; no other point moves", type="tertiary"):
        _place(map["id"])


@session.handler("map place")
def _place(map_id: str) -> None:
    from embeddings.maps import maps

    try:
        with st.spinner("Placing …", show_time=True):
            added = maps.place(session.lake(), map_id)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return
    session.wrote(map_id, {"placed": added})
    st.rerun()


@st.cache_data(max_entries=8, show_spinner=False)
def _embedded(stamp: queries.Stamp, embedder: str) -> int:
    record = next((record for record in session.lake().embedders() if record.name == embedder), None)
    if record is None:
        return 0
    table = session.lake().scan("samples", ["image_id"], f"{record.column} is not null")
    return len(table["image_id"].unique())


def _form(status: dict[str, Any]) -> None:
    current = scope.current()
    where, whole_node = scope.where(), current.node and not current.chips() and not current.slice
    embedders = [embedder["name"] for embedder in status["embedders"] if embedder["embedded"]]
    with st.form("make-map", border=False):
        st.caption(
            f"Maps only the images of cluster {escape(current.node)}."
            if whole_node
            else "Maps the images of the current scope and filters."
            if where
            else "Maps all images of the lake."
        )
        embedder = st.selectbox("Embedder", embedders) if len(embedders) > 1 and not whole_node else embedders[0]
        seed = st.number_input("Seed", 0, 1_000_000, 0, help="The same seed gives the same map")
        if st.form_submit_button("Make map", type="primary", disabled=bool(jobs.unfinished("map"))):
            options: dict[str, Any] = {"node": current.node} if whole_node else {"embedder": embedder, "where": where}
            options["seed"] = int(seed)
            if started := jobs.start("map", options):
                session.put(job=started.id)
                st.rerun()


def _job() -> Job | None:
    """The job of the URL, which this page started, or a map that anyone is making."""
    return jobs.get(session.param("job")) or next(iter(jobs.unfinished("map")), None)


@st.fragment(run_every=0.7)
def _progress(job_id: str) -> None:
    job = jobs.get(job_id)
    if job is None:
        return
    if not job.finished:
        jobs.bar(job, "map")
        return
    if session.param("job") != job_id:  # of another user, whose map is in the list now
        st.rerun(scope="app")
    if job.state == "done" and job.result is not None:
        session.put(map=job.result["map"], job=None, lasso=None, open=None, sel=None)
        st.rerun(scope="app")
    st.error(escape(f"The map could not be made: {job.news or job.state}"))
    if st.button("Close"):
        session.put(job=None)
        st.rerun(scope="app")
