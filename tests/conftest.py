"""Lakes for tests. A new lake is a copy of one that was made once: making ten tables takes a second."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import pytest

from lake import open_lake
from lake.open_lake import OpenLake

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
def _templates(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[object, Path] = {}

    def template(embedders: Sequence[str], columns: dict[str, str]) -> Path:
        key = (tuple(embedders), tuple(columns.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("template") / "lake"
            open_lake.create(str(made[key]), embedders=embedders, columns=columns)
        return made[key]

    return template


@pytest.fixture
def make_lake(tmp_path: Path, _templates: Callable[..., Path]) -> MakeLake:
    """make_lake(name="lake", embedders=(), columns={}) -> an open, empty lake of that name in tmp_path."""

    def make(name: str = "lake", embedders: Sequence[str] = (), columns: dict[str, str] | None = None) -> OpenLake:
        place = tmp_path / name
        shutil.copytree(_templates(embedders, columns or {}), place)
        return open_lake.open(str(place))

    return make


@pytest.fixture
def lk(make_lake: MakeLake) -> OpenLake:
    """An empty lake without embedders or promoted columns."""
    return make_lake()


@pytest.fixture
def say(record_property: Callable[[str, object], None]) -> Say:
    """say(text): a line at the end of the run though the test passes, for counts that are worth reading."""
    return functools.partial(record_property, "said")


# Files of few tests that take long, the longest first: begun last, they would keep one process busy when the others
# have ended. `--no-loadscope-reorder` hands files out in this order.
LONG = (
    "search_app/test_isolate", "crash/test_kills", "search_app/test_browser", "hostile/test_pages",
    "crash/test_takeover", "crash/test_faults", "crash/test_disk_full", "embeddings/test_clip", "test_commands",
    "search_app/test_sql_page", "search_app/test_slices_page", "hostile/test_openapi", "hostile/test_images",
    "embeddings/test_networks", "search_app/test_analyse", "search_app/test_map", "search_app/test_idempotency",
    "embeddings/test_embedder", "embeddings/test_cluster", "hostile/test_sql_runaways", "crash/test_overload",
    "hostile/test_requests", "crash/test_power_loss", "crash/test_sync_order", "search_app/test_quickstart",
    "crash/test_power_cut", "crash/test_stopping", "training/test_training_loop", "training/test_gate",
    "hostile/test_events", "hostile/test_scopes", "hostile/test_paths", "hostile/test_sql_escapes",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name.rpartition("/")[2]: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(Path(item.location[0]).stem, len(LONG)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for some in terminalreporter.stats.values() for r in some if getattr(r, "when", None) == "call"]
    said = [text for report in reports for name, text in report.user_properties if name == "said"]
    if said:
        terminalreporter.section("counts")
        for text in said:
            terminalreporter.line(text)
