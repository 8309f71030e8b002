"""Keeps loaded embedders for searches by an image or text that is not in the lake.

A page that may soon need an embedder loads it in the background. An error is kept and raised by the search that needs
the embedder; the next search tries again.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import Lake

KEPT = 2
HEAD_START = 0.7  # seconds for the page's thumbnails before loading occupies the processor

_Key = tuple[str, str, str | None]  # lake, embedder's name, its weights

_lock = threading.Lock()
_known: dict[_Key, Future[Embedder]] = {}  # the least recently used first


def preload(lake: Lake, name: str) -> None:
    """Start loading the embedder of this name unless it is loaded or being loaded. Returns at once."""
    key = _key(lake, name)
    with _lock:
        if key in _known:
            return
        future = _remember(key)
    threading.Thread(target=_load, args=(future, lake, key, HEAD_START), name=f"load {name}", daemon=True).start()


def loaded(lake: Lake, name: str) -> Embedder:
    """The embedder of this name; waits until it is loaded. Raises the error of loading."""
    key = _key(lake, name)
    with _lock:
        future = _known.pop(key, None)
        mine = future is None
        if future is None:
            future = _remember(key)
        else:
            _known[key] = future
    if mine:
        _load(future, lake, key)
    error = future.exception()
    if error is not None:
        with _lock:
            if _known.get(key) is future:
                del _known[key]
    return future.result()


def _key(lake: Lake, name: str) -> _Key:
    return lake.uri, name, next((one.weights_sha256 for one in lake.embedders() if one.name == name), None)


def _remember(key: _Key) -> Future[Embedder]:
    """Adds a future for an embedder and drops the least recently used. The caller holds the lock."""
    while len(_known) >= KEPT:
        del _known[next(iter(_known))]
    future = _known[key] = Future()
    return future


def _load(future: Future[Embedder], lake: Lake, key: _Key, wait: float = 0) -> None:
    if wait:
        threading.Event().wait(wait)
    try:
        from embeddings.embedders import embedder

        future.set_result(embedder.for_lake(lake, embedder.record_of(lake, key[1])))
    except Exception as error:
        future.set_exception(error)
