"""Networks are loaded once, in the background, and what goes wrong is kept for the search that needs them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import lake
from embeddings.embedders import embedder
from lake.errors import HubUnreachable
from lake.open_lake import OpenLake
from search_app.backend import model_cache
from tests.search_app.shapes import Shapes

NAME = "efficientnet-lite0"


@pytest.fixture
def opened(shapes: Shapes, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenLake]:
    monkeypatch.setattr(model_cache, "HEAD_START", 0)
    model_cache._known.clear()
    yield lake.open(shapes.uri)
    model_cache._known.clear()


def test_a_network_is_loaded_once_for_many_requests(opened: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, may_end = [], threading.Event()

    def load(*_: Any) -> object:
        calls.append(threading.current_thread().name)
        assert may_end.wait(10)
        return object()

    monkeypatch.setattr(embedder, "for_lake", load)
    model_cache.preload(opened, NAME)  # returns while the network is still loading
    model_cache.preload(opened, NAME)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(model_cache.loaded, opened, NAME) for _ in range(4)]
        may_end.set()
        networks = {future.result(timeout=10) for future in futures}
    assert len(networks) == 1
    assert calls == [f"load {NAME}"]


def test_an_error_of_loading_is_raised_by_the_search_and_loading_is_tried_again(
    opened: OpenLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def load(*_: Any) -> str:
        calls.append(1)
        if len(calls) == 1:
            raise HubUnreachable("no way to the hub")
        return "network"

    monkeypatch.setattr(embedder, "for_lake", load)
    model_cache.preload(opened, NAME)
    with pytest.raises(HubUnreachable, match="no way to the hub"):
        model_cache.loaded(opened, NAME)
    assert model_cache.loaded(opened, NAME) == "network"
    assert len(calls) == 2


def test_the_network_unused_for_longest_makes_room(opened: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder, "record_of", lambda lake, name: name)
    monkeypatch.setattr(embedder, "for_lake", lambda lake, name: name)
    for name in ("a", "b", "a", "c"):
        assert model_cache.loaded(opened, name) == name
    assert [name for _, name, _ in model_cache._known] == ["a", "c"]
