"""What the tests of hostile input share: real servers, and a way to print counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lake.store import Lake
from tests.conftest import MakeLake
from tests.crash.conftest import Say, say
from tests.crash.service import Service

__all__ = ["Say", "say"]

Serve = Callable[..., Service]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(lake, *options, ui=False) -> `lakeloop serve`, answering; ended with the test."""
    running: list[Service] = []

    def start(lake: Lake, *options: str, ui: bool = False) -> Service:
        service = Service(Path(lake.uri), options, ui=ui)
        running.append(service)
        return asyncio.run(service.ready())

    yield start
    for service in running:
        service.kill()


@pytest.fixture
def lake_of_columns(make_lake: MakeLake) -> Lake:
    """An empty lake with a promoted column of every type."""
    kinds = {"count": "int", "share": "float", "shift": "string", "broken": "bool", "seen_at": "timestamp"}
    return make_lake("hostile", columns=kinds)
