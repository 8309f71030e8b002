"""The strip for an active search: whole clusters are accepted or refused for it."""

from __future__ import annotations

import streamlit as st

from lake.errors import LakeloopError
from search_app.backend.loaded_searches import LoadedSearch
from search_app.ui import session
from search_app.ui.data import active_searches, queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import images


def active_search() -> LoadedSearch | None:
    """The active search that the user works on, or None."""
    search_id = active_searches.current()
    if not search_id:
        return None
    try:
        return active_searches.opened(search_id, False)
    except LakeloopError:  # it or its embedder was deleted; the page Isolate says so
        active_searches.work_on("")
        return None


def show(loaded: LoadedSearch, current: queries.Row | None) -> None:
    """The strip. `current`: the open node."""
    with loaded.lock:
        search_id, positives, name = loaded.search.id, len(loaded.search.positives()), loaded.search.name
    st.markdown(f"For **{escape(name or 'this search')}**: {positives:,} found", width="content")
    if current is not None and current["node"]:
        for action, text in (("accept", "Accept this cluster"), ("refuse", "Refuse it")):
            if st.button(text, key=f"{action}-here", help="Applies to all its images, including those not shown"):
                mark_cluster(search_id, current["id"], action)
                st.rerun()
    if st.button("Back to marking", type="tertiary"):
        session.go("isolate", search=search_id)
    if st.button("×", type="tertiary", help="Drill down without this search. The search is kept"):
        active_searches.work_on("")
        st.rerun()


def mark_cluster(search_id: str, node_id: str, action: str) -> None:
    """Accepts or refuses (`action`) a whole cluster for a search."""
    session.require(f"search {action}")
    loaded = active_searches.opened(search_id, False)
    with active_searches.marking(loaded) as search:
        before = len(search.positives())
        search.accept(node_id) if action == "accept" else search.refuse(node_id)
        active_searches.sent(())
        new = len(search.positives()) - before
    session.wrote(f"search {action}", search_id, {"node": node_id})
    result = f"accepted: {images(new)} more" if action == "accept" else "refused: its images will not be shown"
    session.say(f"Cluster {escape(node_id.partition('/')[2])} {result}. You can undo this on the page Isolate.")
