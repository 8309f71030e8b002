"""The discovery of a page: many predictions are a job, which is found again while the lake stays the same."""

from __future__ import annotations

from typing import Any

import pytest

from lake.jobs import current
from lake.jobs.job import Job, Starter
from lake.open_lake import OpenLake
from search_app.jobs import starting, supervisor, vector_kinds
from search_app.ui.data import running_discovery
from search_app.ui.data.running_discovery import DiscoveryJob
from tests.lake import stock
from tests.search_app.jobs import counting


def test_for_many_predictions_it_is_a_job_that_any_browser_finds(lk: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_discovery, "QUICK_PREDICTIONS", 1)
    monkeypatch.setattr(supervisor, "ensure", lambda lake: None)
    stock.add(lk, range(4))

    def found(starter: Starter, stamp: tuple[int, ...] = (1, 2)) -> DiscoveryJob:
        options = {"where": None, "by": "metadata", "errors": "confidence"}

        def start(arguments: dict[str, Any], request: str) -> Job:
            return starting.start(lk, "discover", arguments, starter, local=True, request=request)

        running = running_discovery.of(lk, stamp, 2, start, **options)
        assert isinstance(running, DiscoveryJob)
        return running

    first = found(Starter(user="anna"))
    assert (first.done, first.share, first.stage, first.result) == (False, 0.0, "waiting", None)
    assert found(Starter(key_id="k1")).job == first.job
    assert found(Starter(), (1, 3)).job != first.job
    with counting.supervised(lk, counting.InThread):
        while not first.done:
            pass
    assert first.result is None  # four predictions are too few
    assert "predictions" in str(first.error)
    assert first.error == current.get(lk, first.job.id).error
    assert found(Starter(user="ben")).error == first.error


def test_the_result_of_the_job_is_the_discovery(monkeypatch: pytest.MonkeyPatch) -> None:
    from embeddings.discovery.findings import Condition, Discovery, FailingSlice, of_facts
    from lake.analytics.statistics import wilson

    rate, ids = wilson(9, 10), [f"{n:064x}" for n in range(10)]
    named = FailingSlice((Condition("camera", "camera", "7"),), None, "camera = 7", [], 10, 9, rate, rate, rate, 5.0,
                         0.01, ids[:2], [("site b", 0.9)])  # fmt: skip
    unnamed = FailingSlice((), None, None, ids, 10, 9, rate, rate, rate, 5.0, 0.01, ids[:2], [])
    discovery = Discovery([named, unnamed], "judged", 50, 60, rate, 7, 2, None, 1.5)
    assert of_facts(vector_kinds.discover_result(discovery)) == discovery
    monkeypatch.setattr(vector_kinds, "LISTED", 4)
    assert of_facts(vector_kinds.discover_result(discovery)).findings[1].image_ids == ids[:4]
