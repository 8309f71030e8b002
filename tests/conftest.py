"""Lakes for tests. A new lake is a copy of one that was made once: making ten tables takes a second."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import pytest

from lake import open_lake
from lake.open_lake import OpenLake
from tests import temporary
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        r for outcomes in terminalreporter.stats.values() for r in outcomes if getattr(r, "when", None) == "call"
    ]
    texts = [text for report in reports for name, text in report.user_properties if name == "said"]
    if texts:
        terminalreporter.section("counts")
        for text in texts:
            terminalreporter.line(text)
