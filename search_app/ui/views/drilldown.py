"""Drill-down, "Which kind is it?": clusters, opened node by node until the odd kind stands alone."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui import groups, queries, scope, session, words
from search_app.ui.cards import cluster_cards
from search_app.ui.grid import image_grid, save_slice
from search_app.ui.rates import images, share, wilson

MEMBERS_SHOWN = 10_000
METHODS = {"auto": "Automatic", "kmeans": "k-means", "hdbscan": "HDBSCAN"}
SORTS = {"size": "Largest first", "error": "Most wrong first", "unsure": "Least confident first"}


def page() -> None:
    """The Drill-down page."""
    status = queries.status(queries.stamp())
    if not status["images"]:
        return words.no_images()
    if not any(one["embedded"] for one in status["embedders"]):
        return words.not_embedded()
    trees = queries.trees()
    known = [row["tree"] for row in trees]
    tree = session.param("tree") if session.param("tree") in known else (known[0] if known else None)
    if tree is None:
        words.empty(
            "No clusters yet",
            "Clusters group images that look alike: an unusual kind stands out and can be saved as a slice.",
        )
        with st.container(horizontal_alignment="center"), st.container(border=True, width=560):
            _cluster_form(status)
        return None
    _toolbar(trees, tree, status)
    return _node(tree, session.param("at"))


def _toolbar(trees: list[queries.Row], tree: str, status: dict[str, Any]) -> None:
    named = {row["tree"]: _tree_name(row) for row in trees}
    with st.container(horizontal=True, vertical_alignment="center"):
        chosen = _choice("Tree", named, tree, 480)
        with st.popover("New clusters", type="tertiary"):
            _cluster_form(status)
        if scope.current().where():
            st.caption(
                "A tree keeps its own images, whatever the scope and filters; new clusters are made inside them."
            )
        else:
            st.caption("Images that look alike, grouped. Open a group, split it, save what stands alone as a slice.")
    if chosen and chosen != tree:
        session.put(tree=chosen, at=None, open=None, sel=None)
        st.rerun()


def _choice(label: str, named: dict[str, str], chosen: str, width: int) -> str | None:
    """A select box without its label: the key of the name picked."""
    return st.selectbox(
        label,
        list(named),
        list(named).index(chosen),
        format_func=named.__getitem__,
        label_visibility="collapsed",
        width=width,
    )


def _tree_name(row: queries.Row) -> str:
    of = f", {row['filter'][:40]}" if row["filter"] else ""
    return f"{images(row['size'])}{of}, {row['created_at']:%d %b %H:%M}"


def _cluster_form(status: dict[str, Any]) -> None:
    where = scope.current().where()
    names = [one["name"] for one in status["embedders"] if one["embedded"]]
    with st.form("cluster", border=False):
        st.caption(
            "Clusters the images of the present scope and filters." if where else "Clusters every image of the lake."
        )
        embedder = st.selectbox("Embedder", names) if len(names) > 1 else names[0]
        method = st.selectbox("Method", list(METHODS), format_func=METHODS.__getitem__)
        k = st.number_input(
            "Number of clusters", 2, 200, None, placeholder="chosen from the data", help="For k-means only"
        )
        if st.form_submit_button("Make clusters", type="primary"):
            _make(embedder=embedder, where=where, method=method, k=k if method != "hdbscan" else None)


def _make(**how: Any) -> None:
    from embeddings.cluster import cluster

    try:
        with st.spinner("Clustering …", show_time=True):
            made = cluster(session.lake(), **how)
    except LakeloopError as error:
        st.error(words.plain(str(error)))
        return
    session.wrote("cluster", made.tree, {name: value for name, value in how.items() if value is not None})
    if made.remark:
        st.toast(words.plain(made.remark), duration="long")
    if how.get("node") is None:
        session.put(tree=made.tree, at=None, open=None, sel=None)
    session.put(view=None)
    st.rerun()


def _node(tree: str, path: str) -> None:
    here = queries.node(tree, path)
    if here is None:
        return words.empty("This cluster is not in the tree", "The link may be from another lake. Choose a tree above.")
    cards = queries.children(tree, path)
    looking = session.param("view") == "images" or not cards
    _actions(here, bool(cards), looking)
    if looking:
        return _members(here)
    order = {
        "size": lambda row: -row["size"],
        "error": lambda row: -(wilson((row["known"] or 0) - (row["right"] or 0), row["known"] or 0).low or 0),
        "unsure": lambda row: 2 if row["confidence"] is None else row["confidence"],
    }[session.param("sort") if session.param("sort") in SORTS else "size"]
    known, wrong = (
        sum(row["known"] or 0 for row in cards),
        sum((row["known"] or 0) - (row["right"] or 0) for row in cards),
    )
    opened = cluster_cards(
        sorted(cards, key=order), groups.make_up([row["id"] for row in cards]), wrong / known if known else None
    )
    if opened is not None:
        session.put(tree=tree, at=opened, view=None, open=None, sel=None)
        st.rerun()
    return None


def _breadcrumb(path: str) -> None:
    steps = path.split(".") if path else []
    for depth in range(len(steps) + 1):
        at = ".".join(steps[:depth])
        name = f"Cluster {at}" if at else "All"
        if depth == len(steps):
            st.markdown(f"**{name}**", width="content")
        else:
            if st.button(name, type="tertiary", key=f"crumb-{at}"):
                session.put(at=at, view=None, open=None, sel=None)
                st.rerun()
            st.markdown("›", width="content")


def _actions(here: queries.Row, opened: bool, looking: bool) -> None:
    path = here["node"]
    with st.container(horizontal=True, vertical_alignment="center", key="node-actions"):
        _breadcrumb(path)
        st.caption(images(here["size"]), width="content")
        st.space("stretch")
        if opened:
            _choose_view(path, looking)
        elif st.button("Split this cluster", help="Cluster its images afresh"):
            _make(node=f"{here['tree']}/{path}")
        if path and st.button("Use as scope", help="Look at this cluster on every page"):
            session.put(node=f"{here['tree']}/{path}", open=None, sel=None)
            st.rerun()
        with (
            st.popover("Save as slice", type="primary" if path else "secondary"),
            st.form(f"slice-{path}", border=False),
        ):
            name = st.text_input("Name", placeholder="e.g. poly cells")
            if st.form_submit_button("Save slice", type="primary"):
                save_slice(name.strip(), cluster=f"{here['tree']}/{path}")


def _choose_view(path: str, looking: bool) -> None:
    """Cards or all images; and the cards' order."""
    if not looking:
        sort = session.param("sort") if session.param("sort") in SORTS else "size"
        chosen = _choice("Sort", SORTS, sort, 200)
        if chosen and chosen != sort:
            session.put(sort=chosen)
            st.rerun()
    view = st.segmented_control(
        "View",
        ["Clusters", "Images"],
        default="Images" if looking else "Clusters",
        label_visibility="collapsed",
        required=True,
        key=f"view-{path}",
    )
    if (view == "Images") != looking:
        session.put(view="images" if view == "Images" else None, open=None, sel=None)
        st.rerun()


def _members(here: queries.Row) -> None:
    rows = queries.members(here["id"], MEMBERS_SHOWN)
    more = f" of {here['size']:,}" if here["size"] > len(rows) else ""
    image_grid(rows, "confidence", f"{images(len(rows))}{more}{_known(here)}", key="members")


def _known(here: queries.Row) -> str:
    """What the cluster's card said, to go on with the title of its images."""
    row = next((one for one in queries.children(here["tree"], here["parent"] or "") if one["id"] == here["id"]), None)
    if row is None:
        return " in this tree"
    known, kinds = row["known"] or 0, groups.make_up([here["id"]]).get(here["id"], [])
    wrong = wilson(known - (row["right"] or 0), known)
    facts = (
        [f"{share(wrong.value)} wrong ({known - row['right']} of {known} labelled, 95 % {wrong.span()})"]
        if known
        else []
    )
    facts += [f"{share(part)} {name} {value}" for name, value, part in kinds]
    return ", ".join([" in this cluster", *facts])
