"""The active search that a user of the app works on: started, opened, marked; `backend/loaded_searches.py` keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from lake.errors import LakeloopError
from search_app.backend import loaded_searches
from search_app.backend.loaded_searches import LoadedSearch
from search_app.ui import session
from search_app.ui.text.markdown import escape


def opened(search_id: str, check: bool) -> LoadedSearch:
    """The search with this id. `check`: reload it if it has changed elsewhere. Raises BadInput if there is none."""
    return loaded_searches.opened(session.lake(), search_id, check)


@session.handler("search start")
def begin(**options: Any) -> None:
    """Starts a search (see `embeddings.search.saved_searches.start`) and shows it, which ends this run.

    If the search cannot start, a message says why.
    """
    from embeddings.search import saved_searches

    lake = session.lake()
    try:
        with st.spinner("Reading the vectors …", show_time=True):
            search = saved_searches.start(lake, **options)
    except LakeloopError as error:
        st.toast(escape(str(error)), duration="long")
        return
    loaded_searches.keep(lake, search)
    session.wrote(search.id, {name: value for name, value in options.items() if value})
    session.go("isolate", search=search.id)


def current() -> str:
    """The id of the search that this user works on, for which clusters can be accepted or refused; "" if none."""
    return str(st.session_state.get("_search", ""))


def work_on(search_id: str) -> None:
    """Makes this the search that the user works on; "" for none."""
    if st.session_state.get("_search") != search_id:
        st.session_state["_search"] = search_id
        st.session_state.pop("_sent", None)


def sent(yes: Sequence[str]) -> None:
    """Remembers the images marked yes on a page (none for a cluster), so that undo shows these marks again."""
    st.session_state.setdefault("_sent", []).append(list(yes))


def sent_before() -> list[str]:
    """The images marked yes on the page that is undone, if it was sent since the page was loaded."""
    pages = st.session_state.get("_sent")
    return list(pages.pop()) if pages else []
