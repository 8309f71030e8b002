"""Lakes for tests. A new lake is a copy of one that was made once: making ten tables takes a second."""

from __future__ import annotations

import functools
import gc
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import pytest

from lake import open_lake
from lake.open_lake import OpenLake
from tests import temporary
from tests.search_app import browsing
from tests.temporary import Template

temporary.use_memory()

# Tests that share their machine cannot promise a time for one example; equal runs find equal faults.
hypothesis.settings.register_profile(
    "lakeloop",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=40,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("lakeloop")

MakeLake = Callable[..., OpenLake]
Say = Callable[[str], None]


@pytest.fixture(scope="session")
def _templates(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Template]:
    templates: dict[object, Template] = {}

    def template(embedders: Sequence[str], columns: dict[str, str]) -> Template:
        key = (tuple(embedders), tuple(columns.items()))
        if key not in templates:
            folder = tmp_path_factory.mktemp("template") / "lake"
            open_lake.create(str(folder), embedders=embedders, columns=columns)
            templates[key] = Template(folder)
        return templates[key]

    return template


@pytest.fixture
def make_lake(tmp_path: Path, _templates: Callable[..., Template]) -> MakeLake:
    """make_lake(name="lake", embedders=(), columns={}) -> an open, empty lake of that name in tmp_path."""

    def make(name: str = "lake", embedders: Sequence[str] = (), columns: dict[str, str] | None = None) -> OpenLake:
        return open_lake.open(str(_templates(embedders, columns or {}).write(tmp_path / name)))

    return make


@pytest.fixture
def lk(make_lake: MakeLake) -> OpenLake:
    """An empty lake without embedders or promoted columns."""
    return make_lake()


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Say:
    """say(text): a line at the end of the run though the test passes, for counts that are worth reading."""
    return functools.partial(record_property, "said")


# A file that names one of these starts processes or a browser, or trains, or says that it is slow.
# `make quick` leaves it out.
_SLOW = re.compile(
    r"\b(?:subprocess|multiprocessing|playwright|torch|torch_import|timm|sklearn|few_cells|tests\.(?:crash|hostile|forks)"
    r"|import counting|(?:from|import) training|pytest\.mark\.slow)\b"
)


@functools.cache
def _haste(path: Path) -> int:
    """0 for a file whose tests look at pages or harm a server, 1 for another slow one, 2 for one that is quick."""
    text = path.read_text()
    if {"crash", "hostile"} & {*path.parts} or "from playwright" in text:
        return 0
    return 1 if _SLOW.search(text) else 2


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without slow tests their files need not be imported."""
    left_out = "not slow" in config.option.markexpr and collection_path.name.startswith("test_")
    return True if left_out and _haste(collection_path) < 2 else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests come first, so that all processes end together, and mixed: some wait while others compute."""
    for item in items:
        repeated = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if repeated or _haste(item.path) < 2:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: _turn(item.path))


@functools.cache
def _turn(path: Path) -> tuple[int, str]:
    return _haste(path), hashlib.sha256(path.name.encode()).hexdigest() if _haste(path) < 2 else ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if "context" not in getattr(item, "fixturenames", ()):
        browsing.close_browser()


def pytest_sessionfinish() -> None:
    browsing.close_browser()


def pytest_collection_finish() -> None:
    # What is imported by now stays: to look through it at every collection of garbage takes half a second.
    gc.collect()
    gc.freeze()
    # At each test, pytest adds its handlers to every logger that does not propagate: Streamlit has eighty.
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.propagate = True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        r for outcomes in terminalreporter.stats.values() for r in outcomes if getattr(r, "when", None) == "call"
    ]
    texts = [text for report in reports for name, text in report.user_properties if name == "said"]
    if texts:
        terminalreporter.section("counts")
        for text in texts:
            terminalreporter.line(text)
