"""What the page Models asks the lake: runs, curves, versions, verdicts, comparisons, cards.

Everything comes from `training`; what took time is cached by the versions of the tables it was read from. It decides
nothing, and knows no widgets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st

from lake.storage import schema
from search_app.ui import session
from search_app.ui.data import queries

if TYPE_CHECKING:
    from training.card.card import Card
    from training.evaluation.comparison import Forgetting, SliceChange
    from training.registry.releases import ReleaseEvent
    from training.registry.runs import Run
    from training.registry.versions import Version

T = TypeVar("T")
Row = dict[str, Any]

_TRUTH = ("slices", "labels")


# Not cache_data, which copies: what comes back is never changed, and some of it cannot be copied.
@st.cache_resource(max_entries=256, show_spinner=False)
def _kept(stamp: queries.Stamp, _ask: Callable[[], Any], *key: Any) -> Any:
    return _ask()


def _once(ask: Callable[[], T], tables: Sequence[str], *key: Any) -> T:
    found: T = _kept(stamp(*tables), ask, *key)
    return found


def stamp(*tables: str) -> queries.Stamp:
    """The versions of these tables."""
    lake = session.lake()
    return tuple(lake.version(name) for name in tables)


def runs() -> Sequence[Run]:
    """Every run, the newest first."""
    from training.registry import runs as record

    return _once(lambda: record.list(session.lake()), ["runs"], "runs")


def curves(run: str) -> list[Row]:
    """What was measured while a run trained: rows of metrics, by step."""
    return [row for row in _metrics(run) if row["evaluation"] is None]


def figures(run: str) -> list[Row]:
    """A run's metrics on slices, the newest evaluation of each: rows of metrics, by slice."""
    found = {(row["slice"], row["metric"]): row for row in _by_time(run) if row["evaluation"] is not None}
    return [found[key] for key in sorted(found)]


def evaluated(run: str) -> bool:
    """Whether it answered every slice that is judged today. Raises BadInput when there is none."""
    from search_app.jobs.evaluation_job import evaluated as ask

    return _once(lambda: ask(session.lake(), run), ["metrics", "slices"], "evaluated", run)


def versions() -> list[Version]:
    """Every registered version of every model, as it stands now."""
    from training.registry import versions

    return _once(lambda: versions.list(session.lake()), ["releases"], "versions")


def history(model: str) -> list[ReleaseEvent]:
    """What happened to a model's versions, the newest first."""
    from training.registry import releases

    found = _once(lambda: releases.history(session.lake(), model), ["releases"], "history", model)
    return [*reversed(found)]


def verdicts() -> list[Row]:
    """The gates' verdicts, the newest first; `slices` is a list of what `SliceVerdict` has, and its sentence."""
    return _once(_verdicts, ["gates"], "verdicts")


def verdict(candidate: str, baseline: str) -> Row | None:
    """The newest verdict on a run against another."""
    return next((row for row in verdicts() if (row["candidate"], row["baseline"]) == (candidate, baseline)), None)


def compare(old: str, new: str, metric: str) -> list[SliceChange]:
    """As `comparison.compare`, on every slice that is judged today."""
    from training.evaluation import comparison

    tables = ["scores", "runs", *_TRUTH]
    return _once(
        lambda: comparison.compare(session.lake(), old, new, metric=metric), tables, "compare", old, new, metric
    )


def forgetting(model: str) -> Forgetting:
    """As `comparison.forgetting`."""
    from training.evaluation import comparison

    return _once(lambda: comparison.forgetting(session.lake(), model), ["runs", "metrics"], "forgetting", model)


def answers(run: str, image_ids: Sequence[str]) -> list[Row]:
    """image_id, label, confidence as the run's model answered, in the order of the ids."""
    from training.evaluation import evaluate

    found = _once(
        lambda: evaluate.answer_rows(session.lake(), run, image_ids), ["scores"], "answers", run, tuple(image_ids)
    )
    return [dict(found[one]) for one in image_ids if one in found]


def card(run: str) -> Card:
    """As `card.render`."""
    from training.card import card as cards

    tables = ["runs", "metrics", "gates", "releases", *_TRUTH]
    return _once(lambda: cards.render(session.lake(), run), tables, "card", run)


def _by_time(run: str) -> list[Row]:
    return sorted(_metrics(run), key=lambda row: row["at"])


def _metrics(run: str) -> list[Row]:
    from training.registry import runs as record

    return _once(lambda: record.metrics(session.lake(), run), ["metrics"], "metrics", run)


def _verdicts() -> list[Row]:
    rows = session.lake().scan("gates", [one.name for one in schema.GATES.columns]).to_pylist()
    found = [row | {"slices": json.loads(row["slices"]), "policy": json.loads(row["policy"])} for row in rows]
    return sorted(found, key=lambda row: row["at"], reverse=True)
