"""What the tests of hostile input share: real servers, and a way to print counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lake.open_lake import OpenLake
from tests.conftest import MakeLake
from tests.crash.service import Service

Serve = Callable[..., Service]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(lake, *options, ui=False, around=()) -> `lakeloop serve`, answering; ended with the test."""
    running: list[Service] = []

    def start(lake: OpenLake, *options: str, ui: bool = False, around: Sequence[str] = ()) -> Service:
        service = Service(Path(lake.uri), options, around, ui)
        running.append(service)
        with ThreadPoolExecutor(1) as aside:  # a browser's tests have a loop of their own on this thread
            return aside.submit(lambda: asyncio.run(service.ready())).result()

    yield start
    for service in running:
        service.kill()


@pytest.fixture
def lake_of_columns(make_lake: MakeLake) -> OpenLake:
    """An empty lake with a promoted column of every type."""
    kinds = {"count": "int", "share": "float", "shift": "string", "broken": "bool", "seen_at": "timestamp"}
    return make_lake("hostile", columns=kinds)
