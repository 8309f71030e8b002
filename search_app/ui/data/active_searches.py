"""The app's active searches: begun from any page, held in memory while somebody marks.

Loading a search reads every vector it looks in, which takes seconds at a hundred thousand images; a round takes a
fraction of one. So a search is loaded once a process, and again only when it is opened anew after the lake or its
marks have changed elsewhere. It knows no ranking and draws nothing.
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

KEPT = 3  # hundreds of megabytes each at a hundred thousand images

Versions = tuple[int, int]


@dataclass
class Held:
    """A loaded search. Two tabs may show it: its methods are called with `lock` held."""

    search: SavedSearch
    versions: Versions
    lock: threading.RLock = field(default_factory=threading.RLock)


_lock = threading.Lock()
_loading = threading.Lock()  # one at a time: several at once would take their memory together, and no less time
_held: dict[tuple[str, str], Held] = {}  # by lake and search; the one used last is last


def opened(search_id: str, anew: bool) -> Held:
    """The search of this id, loaded if need be; `anew` looks whether it has changed elsewhere.

    Raises BadInput when there is none.
    """
    from embeddings.search import saved_searches

    key = session.lake().uri, search_id
    found = _known(key, anew)
    if found is None:
        with _loading:
            found = _known(key, anew)  # by whoever waited here before
            if found is None:
                versions = _versions()
                found = Held(saved_searches.resume(session.lake(), search_id), versions)
                _keep(key, found)
    return found


def _known(key: tuple[str, str], anew: bool) -> Held | None:
    with _lock:
        found = _held.pop(key, None)
        if found is not None and (not anew or found.versions == _versions()):
            _held[key] = found
            return found
    return None


def _keep(key: tuple[str, str], held: Held) -> None:
    with _lock:
        _held[key] = held
        while len(_held) > KEPT:
            del _held[next(iter(_held))]


@contextmanager
def marking(held: Held) -> Iterator[SavedSearch]:
    """The search, to be marked: what is written meanwhile is no change from elsewhere."""
    with held.lock:
        before = held.versions == _versions()
        yield held.search
        if before:
            held.versions = _versions()


def begin(**how: Any) -> None:
    """Start a search (see `embeddings.searches.start`) and show it, which ends this run; a refusal is said."""
    from embeddings.search import saved_searches

    lake = session.lake()
    try:
        with st.spinner("Reading the vectors …", show_time=True):
            made = saved_searches.start(lake, **how)
    except LakeloopError as error:
        st.toast(escape(str(error)), duration="long")
        return
    _keep((lake.uri, made.id), Held(made, _versions()))
    told = {name: value for name, value in how.items() if value}
    session.wrote("search start", made.id, told)
    session.go("isolate", search=made.id)


def going_on() -> str:
    """The id of the search this person works on, or nothing: what clusters are accepted or refused for."""
    return str(st.session_state.get("_search", ""))


def work_on(search_id: str) -> None:
    """From now on this person works on that search; nothing ends it."""
    if st.session_state.get("_search") != search_id:
        st.session_state["_search"] = search_id
        st.session_state.pop("_sent", None)


def sent(yes: Sequence[str]) -> None:
    """Remember what was said yes to on a page, or nothing for a cluster, so that taking it back shows it again."""
    st.session_state.setdefault("_sent", []).append(list(yes))


def sent_before() -> list[str]:
    """What was said yes to on the page that was taken back, if it was sent since the page was loaded."""
    kept = st.session_state.get("_sent")
    return list(kept.pop()) if kept else []


def _versions() -> Versions:
    lake = session.lake()
    return lake.version("predictions"), lake.version("marks")
