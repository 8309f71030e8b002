"""The strip for an active search: whole clusters are accepted or refused for it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import streamlit as st

from lake.errors import LakeloopError
from search_app.backend import loaded_searches
from search_app.backend.loaded_searches import LoadedSearch
from search_app.ui import session
from search_app.ui.data import active_searches, queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import images

if TYPE_CHECKING:
    from embeddings.search.saved_searches import SavedSearch


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
        for mark, text in ((accept, "Accept this cluster"), (refuse, "Refuse it")):
            if st.button(
                text, key=f"{mark.__name__}-here", help="Applies to all its images, including those not shown"
            ):
                mark(search_id, current["id"])
    if st.button("Back to marking", type="tertiary"):
        session.go("isolate", search=search_id)
    if st.button("×", type="tertiary", help="Drill down without this search. The search is kept"):
        active_searches.work_on("")
        st.rerun()


@session.handler("search accept")
def accept(search_id: str, node_id: str) -> None:
    """Marks all images of a cluster yes for a search, and runs the page again."""
    with _marking(search_id) as search:
        before = len(search.positives())
        search.accept(node_id)
        new = len(search.positives()) - before
    _done(search_id, node_id, f"accepted: {images(new)} more")


@session.handler("search refuse")
def refuse(search_id: str, node_id: str) -> None:
    """Marks all images of a cluster no for a search, and runs the page again."""
    with _marking(search_id) as search:
        search.refuse(node_id)
    _done(search_id, node_id, "refused: its images will not be shown")


def _marking(search_id: str) -> AbstractContextManager[SavedSearch]:
    return loaded_searches.marking(session.lake(), active_searches.opened(search_id, False))


def _done(search_id: str, node_id: str, result: str) -> None:
    active_searches.sent(())
    session.wrote(search_id, {"node": node_id})
    session.say(f"Cluster {escape(node_id.partition('/')[2])} {result}. You can undo this on the page Isolate.")
    st.rerun()
