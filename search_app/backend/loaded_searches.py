"""Active searches that stay loaded while somebody marks images, in the app or over HTTP.

Loading a search reads all vectors it searches in, which takes seconds at a hundred thousand images; a round takes a
fraction of a second. So a process loads a search once, and again only if the lake or its marks have changed elsewhere.
This module ranks nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lake.storage.store import literal

if TYPE_CHECKING:
    from embeddings.search.saved_searches import SavedSearch
    from lake.storage.store import Lake

MOST_LOADED = 3  # hundreds of megabytes each at a hundred thousand images

Versions = tuple[int, int]


@dataclass
class LoadedSearch:
    """A loaded search. Several may use it, so hold `lock` to call its methods."""

    search: SavedSearch
    versions: Versions
    lock: threading.RLock = field(default_factory=threading.RLock)


_lock = threading.Lock()
_loading = threading.Lock()  # one at a time: loading several at once needs more memory and saves no time
_loaded: dict[tuple[str, str], LoadedSearch] = {}  # by lake and search; the most recently used is last


def opened(lake: Lake, search_id: str, check: bool) -> LoadedSearch:
    """The search with this id, loaded if necessary. `check`: reload it if the lake or any marks have changed elsewhere.

    Raises BadInput if there is no such search.
    """
    from embeddings.search import saved_searches

    key = lake.uri, search_id
    loaded = _known(lake, key, check)
    if loaded is None:
        with _loading:
            loaded = _known(lake, key, check)  # another thread may have loaded it meanwhile
            if loaded is None:
                versions = _versions(lake)
                loaded = LoadedSearch(saved_searches.resume(lake, search_id), versions)
                _keep(key, loaded)
    return loaded


def with_all_marks(lake: Lake, search_id: str) -> LoadedSearch:
    """The search, reloaded only if another process has marked images of it; for one request after another.

    Raises BadInput if there is no such search.
    """
    loaded = opened(lake, search_id, False)
    with loaded.lock:
        stored = lake.dataset("marks").count_rows(filter=f"search = {literal(search_id)}")
        if loaded.search.events == stored:
            return loaded
    with _lock:
        _loaded.pop((lake.uri, search_id), None)
    return opened(lake, search_id, False)


def keep(lake: Lake, search: SavedSearch) -> LoadedSearch:
    """Keeps a search that was just started."""
    loaded = LoadedSearch(search, _versions(lake))
    _keep((lake.uri, search.id), loaded)
    return loaded


@contextmanager
def marking(lake: Lake, loaded: LoadedSearch) -> Iterator[SavedSearch]:
    """The search, for writing marks. Writes made meanwhile do not count as changes from elsewhere."""
    with loaded.lock:
        current = loaded.versions == _versions(lake)
        yield loaded.search
        if current:
            loaded.versions = _versions(lake)


def _known(lake: Lake, key: tuple[str, str], check: bool) -> LoadedSearch | None:
    with _lock:
        loaded = _loaded.pop(key, None)
        if loaded is not None and (not check or loaded.versions == _versions(lake)):
            _loaded[key] = loaded
            return loaded
    return None


def _keep(key: tuple[str, str], loaded: LoadedSearch) -> None:
    with _lock:
        _loaded[key] = loaded
        while len(_loaded) > MOST_LOADED:
            del _loaded[next(iter(_loaded))]


def _versions(lake: Lake) -> Versions:
    return lake.version("samples"), lake.version("marks")
