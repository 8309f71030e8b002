"""Drill-down page: a tree of clusters, opened node by node."""

from __future__ import annotations

from contextlib import suppress
from threading import Thread
from typing import Any

import streamlit as st

from lake.errors import LakeloopError
from search_app.backend.loaded_searches import LoadedSearch
from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.data import queries
from search_app.ui.pages.drilldown import clustering, node, search_strip
from search_app.ui.text.numbers import images


def page() -> None:
    """The Drill-down page."""
    status = queries.status(queries.stamp())
    if empty_states.nothing_to_compare(status):
        return None
    _preload()
    clustering.progress()
    trees = queries.trees()
    known = [row["tree"] for row in trees]
    tree = session.param("tree") if session.param("tree") in known else (known[0] if known else None)
    if tree is None:
        empty_states.empty(
            "No clusters yet",
            "Clusters group images that look alike. Save an unusual group as a slice.",
        )
        with st.container(horizontal_alignment="center"), st.container(border=True, width=560):
            clustering.form(status)
        return None
    current = queries.node(tree, session.param("at"))
    search = _toolbar(trees, tree, status, current)
    return node.show(current, search.search.id if search else "")


@st.cache_resource
def _preload() -> None:
    """Imports the clustering libraries in the background: it takes seconds, which a button need not wait for."""
    Thread(target=_import, name="import clustering", daemon=True).start()


def _import() -> None:
    from embeddings.clusters.clustering import preload

    with suppress(LakeloopError):  # the button that needs the library reports it
        preload()


def _toolbar(
    trees: list[queries.Row], tree: str, status: dict[str, Any], current: queries.Row | None
) -> LoadedSearch | None:
    """The choice of a tree, and the active search that clusters can be accepted for. Returns that search."""
    titles = {row["tree"]: _title(row) for row in trees}
    search = search_strip.active_search()
    with st.container(horizontal=True, vertical_alignment="center", key="tree-actions"):
        chosen = node.choice("Tree", titles, tree, 300 if search else 480)
        with st.popover("New clusters", type="tertiary"):
            clustering.form(status)
        if search is not None:
            search_strip.show(search, current)
        elif scope.where():
            st.caption("A tree keeps its images whatever the scope and filters. New clusters are made from them.")
        else:
            st.caption("Groups of images that look alike. Open a group, split it, and save it as a slice.")
    if chosen and chosen != tree:
        session.put(tree=chosen, at=None, open=None, sel=None)
        st.rerun()
    return search


def _title(row: queries.Row) -> str:
    filter = f", {row['filter'][:40]}" if row["filter"] else ""
    return f"{images(row['size'])}{filter}, {row['created_at']:%d %b %H:%M}"
