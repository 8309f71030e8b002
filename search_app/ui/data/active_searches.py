"""The active searches of the app, kept in memory while users mark images.

Loading a search reads all vectors it searches in, which takes seconds at a hundred thousand images; a round takes a
fraction of a second. So a process loads a search once, and again only if it is opened after the lake or its marks have
changed elsewhere. This module ranks nothing and draws nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.text.markdown import escape

if TYPE_CHECKING:
    from embeddings.search.saved_searches import SavedSearch

MOST_LOADED = 3  # hundreds of megabytes each at a hundred thousand images

Versions = tuple[int, int]


@dataclass
class LoadedSearch:
    """A loaded search. Two tabs may show it, so hold `lock` to call its methods."""

    search: SavedSearch
    versions: Versions
    lock: threading.RLock = field(default_factory=threading.RLock)


_lock = threading.Lock()
_loading = threading.Lock()  # one at a time: loading several at once needs more memory and saves no time
_loaded: dict[tuple[str, str], LoadedSearch] = {}  # by lake and search; the most recently used is last


def opened(search_id: str, check: bool) -> LoadedSearch:
    """The search with this id, loaded if necessary. `check`: reload it if it has changed elsewhere.

    Raises BadInput if there is no such search.
    """
    from embeddings.search import saved_searches

    key = session.lake().uri, search_id
    loaded = _known(key, check)
    if loaded is None:
        with _loading:
            loaded = _known(key, check)  # another thread may have loaded it meanwhile
            if loaded is None:
                versions = _versions()
                loaded = LoadedSearch(saved_searches.resume(session.lake(), search_id), versions)
                _keep(key, loaded)
    return loaded


def _known(key: tuple[str, str], check: bool) -> LoadedSearch | None:
    with _lock:
        loaded = _loaded.pop(key, None)
        if loaded is not None and (not check or loaded.versions == _versions()):
            _loaded[key] = loaded
            return loaded
    return None


def _keep(key: tuple[str, str], loaded: LoadedSearch) -> None:
    with _lock:
        _loaded[key] = loaded
        while len(_loaded) > MOST_LOADED:
            del _loaded[next(iter(_loaded))]


@contextmanager
def marking(loaded: LoadedSearch) -> Iterator[SavedSearch]:
    """The search, for writing marks. Writes made meanwhile do not count as changes from elsewhere."""
    with loaded.lock:
        current = loaded.versions == _versions()
        yield loaded.search
        if current:
            loaded.versions = _versions()


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
    _keep((lake.uri, search.id), LoadedSearch(search, _versions()))
    session.wrote("search start", search.id, {name: value for name, value in options.items() if value})
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


def _versions() -> Versions:
    lake = session.lake()
    return lake.version("samples"), lake.version("marks")
