"""What the page Models reads from the lake: runs, curves, versions, verdicts, comparisons, cards.

It calls `training`, and caches the results by the versions of the tables they were read from. It knows no widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import streamlit as st

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

_GROUND_TRUTH = ("slices", "labels")


# Not cache_data, which copies: the results are never changed, and some of them cannot be copied.
@st.cache_resource(max_entries=256, show_spinner=False)
def _cached(stamp: queries.Stamp, _compute: Callable[[], Any], *key: Any) -> Any:
    return _compute()


def _once(compute: Callable[[], T], tables: Sequence[str], *key: Any) -> T:
    result: T = _cached(stamp(*tables), compute, *key)
    return result


def stamp(*tables: str) -> queries.Stamp:
    """The versions of these tables."""
    lake = session.lake()
    return tuple(lake.version(name) for name in tables)


def runs() -> Sequence[Run]:
    """All runs, newest first."""
    from training.registry import runs as record

    return _once(lambda: record.list(session.lake()), ["runs"], "runs")


def curves(run: str) -> list[Row]:
    """What was measured during training: rows of metrics, by step."""
    return [row for row in _metrics(run) if row["evaluation"] is None]


def figures(run: str) -> list[Row]:
    """The metrics of a run on slices, from the newest evaluation of each: rows of metrics, by slice."""
    rows = {(row["slice"], row["metric"]): row for row in _by_time(run) if row["evaluation"] is not None}
    return [rows[key] for key in sorted(rows)]


def evaluated(run: str) -> bool:
    """Whether the run was evaluated on every evaluation and regression slice. Raises BadInput if there is none."""
    from search_app.jobs.model_kinds import evaluated as ask

    return _once(lambda: ask(session.lake(), run), ["metrics", "slices"], "evaluated", run)


def versions() -> list[Version]:
    """All registered versions of all models, with their current status."""
    from training.registry import versions

    return _once(lambda: versions.list(session.lake()), ["releases"], "versions")


def canary_measurements(model: str) -> list[str]:
    """What each server measured of the model's canary, in words; empty without a canary."""
    from training.inference import canary_measurements as measurements

    canary = next((version for version in versions() if version.model == model and version.status == "canary"), None)
    measured = [] if canary is None else measurements.read(session.lake(), canary)
    return [measurements.sentence(facts) for facts in measured]


def history(model: str) -> list[ReleaseEvent]:
    """The release events of a model, newest first."""
    from training.registry import releases

    events = _once(lambda: releases.history(session.lake(), model), ["releases"], "history", model)
    return [*reversed(events)]


def verdicts() -> list[Row]:
    """All gate verdicts, newest first. `slices`: the fields of each `SliceVerdict`, and its sentence."""
    return _once(_verdicts, ["gates"], "verdicts")


def verdict(candidate: str, baseline: str) -> Row | None:
    """The newest verdict on a run against another."""
    return next((row for row in verdicts() if (row["candidate"], row["baseline"]) == (candidate, baseline)), None)


def compare(old: str, new: str, metric: str) -> list[SliceChange]:
    """As `comparison.compare`, on every evaluation and regression slice."""
    from training.evaluation import comparison

    tables = ["scores", "runs", *_GROUND_TRUTH]
    return _once(
        lambda: comparison.compare(session.lake(), old, new, metric=metric), tables, "compare", old, new, metric
    )


def forgetting(model: str) -> Forgetting:
    """As `comparison.forgetting`."""
    from training.evaluation import comparison

    return _once(lambda: comparison.forgetting(session.lake(), model), ["runs", "metrics"], "forgetting", model)


def predictions(run: str, image_ids: Sequence[str]) -> list[Row]:
    """image_id, label, confidence as predicted by the run, in the order of the ids."""
    from training.evaluation import evaluate

    key = ("predictions", run, tuple(image_ids))
    rows = _once(lambda: evaluate.prediction_rows(session.lake(), run, image_ids), ["scores"], *key)
    return [dict(rows[image_id]) for image_id in image_ids if image_id in rows]


def card(run: str) -> Card:
    """As `card.render`."""
    from training.card import card as cards

    tables = ["runs", "metrics", "gates", "releases", *_GROUND_TRUTH]
    return _once(lambda: cards.render(session.lake(), run), tables, "card", run)


def _by_time(run: str) -> list[Row]:
    return sorted(_metrics(run), key=lambda row: row["at"])


def _metrics(run: str) -> list[Row]:
    from training.registry import runs as record

    return _once(lambda: record.metrics(session.lake(), run), ["metrics"], "metrics", run)


def _verdicts() -> list[Row]:
    from training.evaluation import records

    return [vars(verdict) for verdict in records.verdicts(session.lake())]
