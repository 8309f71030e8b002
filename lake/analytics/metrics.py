"""Accuracy of predictions by dimensions, confusion, days and model comparison: rates with intervals, by SQL.

A prediction is correct or wrong by its image's label, or else by a person's verdict (view `predictions_reviewed`).
Only aggregates leave the database, so a million predictions take seconds. Every function takes `where`, a filter that
`scope` has checked, or None for all predictions.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from lake.analytics import dimensions
from lake.analytics.dimensions import Dimension
from lake.analytics.statistics import Rate, mcnemar, wilson
from lake.errors import BadInput
from lake.regions import sizes
from lake.sql import connections
from lake.sql import where as filters
from lake.sql.connections import connect
from lake.sql.where import predicate
from lake.storage.store import literal

if TYPE_CHECKING:
    import pyarrow as pa

    from lake.storage.store import Lake

HISTOGRAM_BINS = 20
MAX_CELLS = 400
_VERSION = "model || coalesce(' ' || model_version, '')"


def scope(lake: Lake, where: str | None = None, slice: str | None = None, models: Sequence[str] = ()) -> str | None:
    """One filter from several: a SQL filter, a slice (NAME, NAME@VERSION), models ("NAME" or "NAME VERSION").

    None without any of them. Raises BadInput if the filter is not valid SQL, or for an unknown slice or model.
    """
    parts = []
    if where:
        filters.check(lake, where)
        parts.append(where)
    if slice:
        parts.append(dimensions.inside_slice(lake, slice))
    if models:
        known = _models(lake)
        for model in models:
            if model not in known:
                raise BadInput(f"no predictions of a model {model!r}; there are {', '.join(sorted(known)) or 'none'}")
        quoted = ", ".join(map(literal, models))
        parts.append(f"model IN ({quoted}) OR {_VERSION} IN ({quoted})")
    return filters.conjunction(*parts)


@dataclass(frozen=True)
class MetricCell:
    """Predictions that share a value of each dimension; None is "no value", or all values in a margin.

    `known`: how many are evaluated; `right`: how many of these are correct. `confidence`: their mean, 0 to 1, or None.
    """

    values: tuple[str | None, ...]
    predictions: int
    known: int
    right: int
    confidence: float | None

    @property
    def accuracy(self) -> Rate:
        """Share of the evaluated predictions that are correct, with Wilson's 95 % interval."""
        return wilson(self.right, self.known)

    @property
    def error(self) -> Rate:
        """Share of the evaluated predictions that are wrong, with Wilson's 95 % interval."""
        return wilson(self.known - self.right, self.known)


@dataclass(frozen=True)
class Breakdown:
    """`cells`: most predictions first, or in the first dimension's order if it has one. `margins`: with two dimensions,
    the cells of each. `whole`: all predictions. `left_out`: how many cells beyond `MAX_CELLS` were dropped.
    """

    dimensions: list[Dimension]
    cells: list[MetricCell]
    margins: list[list[MetricCell]]
    whole: MetricCell
    left_out: int

    def predicate(self, cell: MetricCell) -> str | None:
        """The predicate that selects the cell's predictions; None if there is none."""
        parts = [one.picks(value) for one, value in zip(self.dimensions, cell.values, strict=True)]
        return None if None in parts else " AND ".join(f"({part})" for part in parts)

    def as_dict(self) -> dict[str, Any]:
        """JSON: `by`, the dimensions' names; `cells`; `all`, the whole; `left_out`."""
        keys = [dimension.name for dimension in self.dimensions]
        cells = [
            {
                **{key: value for key, value in zip(keys, cell.values, strict=False)},
                "predictions": cell.predictions,
                "judged": cell.known,
                "right": cell.right,
                "accuracy": cell.accuracy.as_dict(),
                "error": cell.error.as_dict(),
                "confidence": cell.confidence,
                "where": self.predicate(cell) if cell.values else None,
            }
            for cell in [*self.cells, self.whole]
        ]
        return {"by": keys, "cells": cells[:-1], "all": cells[-1], "left_out": self.left_out}


def by(lake: Lake, names: Sequence[str], where: str | None = None) -> Breakdown:
    """Counts and rates by one or two dimensions of `lake/analytics/dimensions.py`; without any, the whole.

    Raises BadInput for an unknown dimension, with the nearest names, and for more than two.
    """
    if len(names) > 2 or len({*names}) < len(names):
        raise BadInput(f"give one or two different dimensions, not {', '.join(names)}")
    resolved = dimensions.resolve(lake, names, where)
    keys = [f"d{position}" for position in range(len(resolved))]
    joins = " ".join(dict.fromkeys(dimension.join for dimension in resolved if dimension.join))
    selected = "".join(f", {dimension.sql} AS {key}" for dimension, key in zip(resolved, keys, strict=True))
    source = f"(SELECT * FROM predictions_reviewed WHERE {predicate(where)}) a {joins}"
    rows = f"SELECT a.correct, a.confidence{selected} FROM {source}"
    for dimension, key in zip(resolved, keys, strict=True):
        if dimension.several:  # one unnest at a time: two in one SELECT would be paired, not crossed
            rows = f"SELECT * REPLACE (unnest({key}) AS {key}) FROM ({rows})"
    sets = (
        ["()"] + ([f"({', '.join(keys)})"] if keys else []) + ([f"({key})" for key in keys] if len(keys) == 2 else [])
    )
    level = f"grouping({', '.join(keys)})" if keys else "0"
    chosen = "".join(f"{key}, " for key in keys)
    text = f"""
        SELECT {chosen}{level} AS level, count(*) AS predictions, count(correct) AS known,
               count(*) FILTER (WHERE correct) AS "right", avg(confidence) AS confidence
        FROM ({rows}) GROUP BY GROUPING SETS ({", ".join(sets)}) ORDER BY predictions DESC, {chosen or "1,"} level"""
    counted = _run(lake, text, resolved).to_pylist()
    whole = (
        total(lake, where) if any(dimension.several or "JOIN (" in dimension.join for dimension in resolved) else None
    )
    every = 2 ** len(keys) - 1
    cells, margins = [], [[] for _ in keys] if len(keys) == 2 else []  # type: ignore[var-annotated]
    for row in counted:
        cell = MetricCell(
            tuple(row[k] for k in keys), row["predictions"], row["known"], row["right"], row["confidence"]
        )
        if row["level"] == 0 and keys:
            cells.append(cell)
        elif row["level"] == every:
            whole = whole or cell
        else:  # a margin's bit is set for the dimension that it leaves out
            margins[0 if row["level"] == 1 else 1].append(cell)
    whole = whole or MetricCell((None,) * len(keys), 0, 0, 0, None)
    listed = cells[:MAX_CELLS]
    if resolved and resolved[0].order:
        position = {value: index for index, value in enumerate(resolved[0].order)}
        listed.sort(key=lambda cell: position.get(cell.values[0] or "", len(position)))
    elif names and names[0] in ("day", "week", "month", "hour"):
        listed.sort(key=lambda cell: (cell.values[0] is None, cell.values[0]))
    return Breakdown(resolved, listed, margins, whole, len(cells) - len(listed))


def total(lake: Lake, where: str | None = None) -> MetricCell:
    """All predictions that pass, as one cell without values."""
    row = connections.query(
        lake,
        f"""SELECT count(*) AS predictions, count(correct) AS known, count(*) FILTER (WHERE correct) AS "right",
                   avg(confidence) AS confidence FROM predictions_reviewed WHERE {predicate(where)}""",
    ).to_pylist()[0]
    return MetricCell((), row["predictions"], row["known"], row["right"], row["confidence"])


def histogram(lake: Lake, where: str | None = None) -> list[dict[str, Any]]:
    """Histogram, ascending: low (of a bin of width 0.05), verdict (right, wrong, unknown), predictions."""
    rows = connections.query(
        lake,
        f"""
        SELECT least(floor(confidence * {HISTOGRAM_BINS}), {HISTOGRAM_BINS - 1}) / {HISTOGRAM_BINS} AS low,
               CASE correct WHEN true THEN 'right' WHEN false THEN 'wrong' ELSE 'unknown' END AS verdict,
               count(*) AS predictions
        FROM predictions_reviewed WHERE {predicate(where)} AND confidence BETWEEN 0 AND 1
        GROUP BY ALL ORDER BY low, verdict""",
    )
    return list(rows.to_pylist())


def confusion(lake: Lake, where: str | None = None) -> dict[tuple[str, str | None], int]:
    """How many predictions by (true label, predicted label), of labelled images."""
    rows = connections.query(
        lake,
        f"""
        SELECT true_label AS ground_truth, label AS prediction, count(*) AS n FROM predictions_reviewed
        WHERE {predicate(where)} AND true_label IS NOT NULL GROUP BY ALL ORDER BY n DESC, ground_truth, prediction""",
    )
    return {(row["ground_truth"], row["prediction"]): row["n"] for row in rows.to_pylist()}


def confusion_cells(lake: Lake, where: str | None = None) -> list[dict[str, Any]]:
    """`confusion` as rows: `true`, `predicted`, `predictions`."""
    counts = confusion(lake, where)
    return [{"true": label, "predicted": predicted, "predictions": n} for (label, predicted), n in counts.items()]


def confused(
    lake: Lake, true_label: str, prediction: str | None, where: str | None = None, limit: int = 10_000
) -> list[str]:
    """image_ids of a cell of the confusion matrix, highest confidence first."""
    rows = connections.query(
        lake,
        f"""SELECT image_id FROM predictions_reviewed WHERE {predicate(where)} AND true_label = ?
            AND label IS NOT DISTINCT FROM ? GROUP BY image_id
            ORDER BY max(confidence) DESC NULLS LAST, image_id LIMIT {int(limit)}""",
        [true_label, prediction],
    )
    return list(rows["image_id"].to_pylist())


@dataclass(frozen=True)
class ClassMetrics:
    """Counts and rates of a class: images labelled with it, predictions of it, recall and precision."""

    name: str
    labelled: int
    predicted: int
    recall: Rate  # of the predictions for images of this class, the share that predicts it
    precision: Rate  # of the predictions of this class for labelled images, the share that is correct


def classes(lake: Lake, where: str | None = None) -> list[ClassMetrics]:
    """Counts and rates by class, most predicted first; at most 200. A labelled image counts once."""
    rows = connections.query(
        lake,
        f"""
        WITH a AS (SELECT image_id, label, true_label FROM predictions_reviewed WHERE {predicate(where)}),
        t AS (SELECT true_label AS name, count(DISTINCT image_id) AS labelled, count(*) AS asked,
                     count(*) FILTER (label = true_label) AS found
              FROM a WHERE true_label IS NOT NULL GROUP BY ALL),
        p AS (SELECT label AS name, count(*) AS predicted, count(true_label) AS known,
                     count(*) FILTER (label = true_label) AS hits FROM a WHERE label IS NOT NULL GROUP BY ALL)
        SELECT name, coalesce(labelled, 0) AS labelled, coalesce(asked, 0) AS asked, coalesce(found, 0) AS found,
               coalesce(predicted, 0) AS predicted, coalesce(known, 0) AS known, coalesce(hits, 0) AS hits
        FROM t FULL JOIN p USING (name) ORDER BY predicted DESC, labelled DESC, name LIMIT 200""",
    )
    return [
        ClassMetrics(
            r["name"], r["labelled"], r["predicted"], wilson(r["found"], r["asked"]), wilson(r["hits"], r["known"])
        )
        for r in rows.to_pylist()
    ]


@dataclass(frozen=True)
class DayMetrics:
    """The predictions of one day (UTC)."""

    day: dt.date
    predictions: int
    known: int
    right: int
    confidence: float | None


def days(lake: Lake, where: str | None = None) -> list[DayMetrics]:
    """Counts and mean confidence by day, ascending, without predictions that have no time."""
    rows = connections.query(
        lake,
        f"""
        SELECT CAST(timestamp AS DATE) AS day, count(*) AS predictions, count(correct) AS known,
               count(*) FILTER (WHERE correct) AS "right", avg(confidence) AS confidence
        FROM predictions_reviewed WHERE {predicate(where)} AND timestamp IS NOT NULL GROUP BY day ORDER BY day""",
    )
    return [DayMetrics(**row) for row in rows.to_pylist()]


@dataclass(frozen=True)
class ModelComparison:
    """Two models on the same images, each by its newest prediction. `p`: McNemar's exact test that both are correct
    equally often, 0 to 1. `broken`: image_ids that only `old` predicts correctly; `repaired`: only `new`; both by the
    confidence of the wrong prediction, highest first.
    """

    old: str
    new: str
    both: int
    only_old: int
    only_new: int
    neither: int
    p: float
    broken: list[str]
    repaired: list[str]

    @property
    def n(self) -> int:
        """How many images have evaluated predictions of both."""
        return self.both + self.only_old + self.only_new + self.neither


def compare(lake: Lake, old: str, new: str, where: str | None = None) -> ModelComparison:
    """Compares `old` with `new` ("NAME" or "NAME VERSION"). Raises BadInput for unknown models, or the same twice."""
    known = _models(lake)
    for model in (old, new):
        if model not in known:
            raise BadInput(f"no predictions of a model {model!r}; there are {', '.join(sorted(known)) or 'none'}")
    if known[old] & known[new]:
        raise BadInput(f"{old!r} and {new!r} name the same model; add the version, as in: --compare 'm 1' 'm 2'")
    rows = connections.query(
        lake,
        f"""
        WITH a AS (SELECT image_id, correct, confidence, {_VERSION} = ? OR model = ? AS is_old
                   FROM predictions_reviewed WHERE {predicate(where)} AND ({_VERSION} IN (?, ?) OR model IN (?, ?))
                   QUALIFY row_number() OVER (PARTITION BY image_id, is_old
                                              ORDER BY timestamp DESC NULLS LAST, ingested_at DESC, prediction_id) = 1),
        pairs AS (SELECT o.image_id, o.correct AS old_right, n.correct AS new_right,
                         CASE WHEN o.correct THEN n.confidence ELSE o.confidence END AS sure
                  FROM (SELECT * FROM a WHERE is_old) o JOIN (SELECT * FROM a WHERE NOT is_old) n USING (image_id)
                  WHERE o.correct IS NOT NULL AND n.correct IS NOT NULL)
        SELECT old_right, new_right, count(*) AS n,
               CASE WHEN old_right <> new_right THEN list(image_id ORDER BY sure DESC NULLS LAST, image_id) END AS ids
        FROM pairs GROUP BY old_right, new_right""",
        [old, old, old, new, old, new],
    ).to_pylist()
    counts = {(row["old_right"], row["new_right"]): row for row in rows}

    def n(*right: bool) -> int:
        return counts[right]["n"] if right in counts else 0

    def ids(*right: bool) -> list[str]:
        return list(counts[right]["ids"]) if right in counts else []

    return ModelComparison(
        old,
        new,
        n(True, True),
        n(True, False),
        n(False, True),
        n(False, False),
        mcnemar(n(True, False), n(False, True)),
        ids(True, False),
        ids(False, True),
    )


def models(lake: Lake) -> list[str]:
    """ "NAME VERSION" of every model with predictions, newest predictions first."""
    rows = connections.query(
        lake,
        f"""SELECT {_VERSION} AS name FROM predictions GROUP BY name
                        ORDER BY max(timestamp) DESC NULLS LAST, name DESC LIMIT 200""",
    )
    return list(rows["name"].to_pylist())


def _models(lake: Lake) -> dict[str, set[tuple[str, str | None]]]:
    """Every name of a model, "NAME" and "NAME VERSION", with the models it stands for."""
    rows = connections.query(
        lake, f"SELECT DISTINCT model, model_version, {_VERSION} AS whole FROM predictions"
    ).to_pylist()
    known: dict[str, set[tuple[str, str | None]]] = {}
    for row in rows:
        for name in (row["model"], row["whole"]):
            known.setdefault(name, set()).add((row["model"], row["model_version"]))
    return known


def _run(lake: Lake, text: str, resolved: Sequence[Dimension]) -> pa.Table:
    if not any("_mask_sizes" in dimension.join for dimension in resolved):
        return connections.query(lake, text)
    table = sizes.of_masks(lake)
    with connect(lake) as connection:
        connection.register("_mask_sizes", table)
        try:
            return connection.sql(text).to_arrow_table()
        except duckdb.Error as error:
            raise BadInput(str(error)) from error
        finally:
            connection.unregister("_mask_sizes")
