"""Error rates of groups of predictions, to find the groups that a model fails on.

Groups are the values of promoted columns, model versions, predicted classes, and the first clusters of the newest
tree. Only aggregates leave the lake, so a million rows need the same few scans as a thousand.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from lake.analytics.statistics import Rate, wilson
from lake.sql.where import predicate
from lake.storage.store import literal
from search_app.ui import session
from search_app.ui.data import queries

Kind = Literal["column", "model", "label", "node", "all"]

ENOUGH = 8  # labelled predictions that a group needs to be compared
MOST_VALUES = 20  # a promoted column with more values names no groups
SHOWN = 3
NEARLY_ALL = 0.9  # share from which a property is said of the whole group
_MOST_GROUPS = 300


@dataclass(frozen=True)
class Group:
    """One group of predictions. Rates count only those whose image has a label (`labelled` of `predictions`)."""

    kind: Kind
    name: str  # of the column; empty for other kinds
    value: str  # of the column; `name version` of a model; the class; TREE/NODE
    predictions: int
    labelled: int
    correct: int
    balanced: float | None  # mean recall over its true classes
    baseline: float | None  # the accuracy of always predicting its majority class
    predicted: str | None  # its most frequent predicted class
    predicted_share: float  # of that class
    confidence: float | None  # mean

    @property
    def wrong(self) -> Rate:
        """The error rate, with its 95 % interval."""
        return wilson(self.labelled - self.correct, self.labelled)

    @property
    def title(self) -> str:
        """Its name on the screen."""
        match self.kind:
            case "column":
                return f"{self.name.replace('_', ' ')} {self.value}"
            case "label":
                return f"predicted “{self.value}”"
            case "node":
                return f"cluster {self.value.partition('/')[2]}"
            case "model":
                return self.value
            case _:
                return "all predictions"

    def sql(self) -> str:
        """The SQL predicate over table samples that selects the group."""
        match self.kind:
            case "column":
                return _equals(self.name, self.value, session.lake().promoted()[self.name])
            case "label":
                return f"label = {literal(self.value)}"
            case "model":
                return f"model || coalesce(' ' || model_version, '') = {literal(self.value)}"
            case "node":
                return f"image_id IN (SELECT image_id FROM cluster_members WHERE id = {literal(self.value)})"
            case _:
                return "true"


def reviewed(where: str | None) -> list[Group]:
    """Every group inside the filter: first the whole, then by number of predictions, the largest first."""
    columns = list(session.lake().promoted())
    tree = next((row["tree"] for row in queries.trees()), None)
    return [Group(**row) for row in queries.rows(_sql(where, columns, tree))]


def worst(groups: Sequence[Group]) -> list[Group]:
    """Up to three groups whose error rate is above the overall rate by its whole 95 % interval, the highest first."""
    overall = next((group.wrong.value for group in groups if group.kind == "all"), None)
    if overall is None:
        return []
    worse = [
        group
        for group in groups
        if group.kind != "all" and group.labelled >= ENOUGH and (group.wrong.low or 0) > overall
    ]
    return sorted(worse, key=lambda group: (-(group.wrong.low or 0), group.kind, group.value))[:SHOWN]


def by_column(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each promoted column, the largest first."""
    columns: dict[str, list[Group]] = {}
    for group in groups:
        if group.kind == "column":
            columns.setdefault(group.name, []).append(group)
    return columns


def most_confident_errors(where: str | None, groups: Sequence[Group], count: int = 3) -> list[list[str]]:
    """For each group the image ids of its `count` most confident errors, the most confident first."""
    if not groups:
        return []
    selects = [
        f"SELECT * FROM (SELECT {i} AS i, image_id, max(confidence) AS top FROM errors WHERE {group.sql()}"
        f" GROUP BY image_id ORDER BY top DESC NULLS LAST, image_id LIMIT {count})"
        for i, group in enumerate(groups)
    ]
    rows = queries.rows(f"""
        WITH errors AS MATERIALIZED (SELECT {_columns()} FROM predictions_labelled
                                     WHERE {predicate(where)} AND NOT correct)
        {" UNION ALL ".join(selects)} ORDER BY i, top DESC NULLS LAST, image_id""")
    return [[row["image_id"] for row in rows if row["i"] == i] for i in range(len(groups))]


@dataclass(frozen=True)
class ErrorConfidence:
    """Errors among labelled predictions: `low` of them in the least confident fifth, `high` with confidence > 0.9."""

    errors: int
    low: int
    high: int


def error_confidence(where: str | None, groups: Sequence[Group]) -> list[ErrorConfidence]:
    """For each group. The least confident fifth is that of all labelled predictions inside the filter."""
    selects = [
        f"SELECT {i} AS i, count(*) AS errors, count(*) FILTER (confidence <= (FROM fifth)) AS low,"
        f" count(*) FILTER (confidence > 0.9) AS high FROM errors WHERE {group.sql()}"
        for i, group in enumerate(groups)
    ]
    rows = queries.rows(f"""
        WITH a AS MATERIALIZED (SELECT {_columns()}, correct FROM predictions_labelled
                                WHERE {predicate(where)} AND confidence IS NOT NULL),
             fifth AS MATERIALIZED (SELECT quantile_cont(confidence, 0.2) FROM a),
             errors AS MATERIALIZED (SELECT * FROM a WHERE NOT correct)
        {" UNION ALL ".join(selects)} ORDER BY i""")
    return [ErrorConfidence(row["errors"], row["low"], row["high"]) for row in rows]


def make_up(ids: Sequence[str]) -> dict[str, list[tuple[str, str, float]]]:
    """By node (TREE/NODE): (column, value, share of its predictions) where one value has at least half of them."""
    columns = list(session.lake().promoted())
    if not columns or not ids:
        return {}
    counts = " UNION ALL ".join(
        f"SELECT id, {literal(column)} AS name, CAST({_name(column)} AS VARCHAR) AS value, count(*) AS n FROM a"
        " GROUP BY ALL"
        for column in columns
    )
    rows = queries.rows(
        f"""WITH a AS MATERIALIZED (SELECT m.id, {", ".join(map(_name, columns))}
                FROM cluster_members m JOIN predictions USING (image_id)
                WHERE m.id IN (SELECT unnest(CAST(? AS VARCHAR[])))),
            c AS ({counts})
            SELECT id, name, arg_max(value, n) AS value, max(n) / sum(n) AS share FROM c
            GROUP BY id, name HAVING share >= 0.5 AND value IS NOT NULL ORDER BY id, name""",
        tuple(ids),
    )
    shares: dict[str, list[tuple[str, str, float]]] = {}
    for row in rows:
        shares.setdefault(row["id"], []).append((row["name"].replace("_", " "), row["value"], row["share"]))
    return shares


def _sql(where: str | None, columns: Sequence[str], tree: str | None) -> str:
    cell = (
        "true_label AS ground_truth, label AS prediction, count(*) AS n, sum(confidence) AS total, "
        "count(confidence) AS with_confidence"
    )
    kinds = [
        f"SELECT 'all' AS kind, '' AS name, '' AS value, {cell} FROM a GROUP BY ALL",
        f"SELECT 'label', '', label, {cell} FROM a WHERE label IS NOT NULL GROUP BY ALL",
        f"SELECT 'model', '', model || coalesce(' ' || model_version, '') AS value, {cell} FROM a GROUP BY ALL",
    ]
    kinds += [
        f"SELECT 'column', {literal(column)}, CAST({_name(column)} AS VARCHAR) AS value, {cell} FROM a"
        f" WHERE {_name(column)} IS NOT NULL AND (SELECT count(DISTINCT {_name(column)}) FROM a) <= {MOST_VALUES}"
        " GROUP BY ALL"
        for column in columns
    ]
    if tree is not None:
        kinds.append(
            f"SELECT 'node', '', m.id, {cell} FROM a JOIN cluster_members m USING (image_id)"
            f" SEMI JOIN (SELECT id FROM clusters WHERE tree = {literal(tree)} AND parent = '' AND NOT noise) c"
            f" ON m.id = c.id WHERE m.tree = {literal(tree)} GROUP BY ALL"
        )
    return f"""
        WITH a AS MATERIALIZED (SELECT {_columns()} FROM predictions_labelled WHERE {predicate(where)}),
        cells AS MATERIALIZED ({" UNION ALL ".join(kinds)}),
        whole AS (SELECT kind, name, value, CAST(sum(n) AS BIGINT) AS predictions,
                         CAST(coalesce(sum(n) FILTER (ground_truth IS NOT NULL), 0) AS BIGINT) AS labelled,
                         CAST(coalesce(sum(n) FILTER (ground_truth = prediction), 0) AS BIGINT) AS correct,
                         sum(total) / nullif(sum(with_confidence), 0) AS confidence FROM cells GROUP BY ALL),
        classes AS (SELECT kind, name, value, ground_truth, CAST(sum(n) AS DOUBLE) AS n,
                           coalesce(sum(n) FILTER (ground_truth = prediction), 0) / sum(n) AS recall
                    FROM cells WHERE ground_truth IS NOT NULL GROUP BY ALL),
        recalls AS (SELECT kind, name, value, avg(recall) AS balanced, max(n) / sum(n) AS baseline
                    FROM classes GROUP BY ALL),
        counts AS (SELECT kind, name, value, prediction, CAST(sum(n) AS DOUBLE) AS n FROM cells GROUP BY ALL),
        modes AS (SELECT kind, name, value, arg_max(prediction, n) AS predicted, max(n) / sum(n) AS predicted_share
                  FROM counts GROUP BY ALL)
        SELECT * FROM whole LEFT JOIN recalls USING (kind, name, value) LEFT JOIN modes USING (kind, name, value)
        ORDER BY kind <> 'all', predictions DESC, kind, name, value LIMIT {_MOST_GROUPS}"""


def _columns() -> str:
    """The columns that groups are built from. Vectors, boxes and masks are not read."""
    fixed = ["image_id", "label", "confidence", "true_label", "model", "model_version"]
    return ", ".join([*fixed, *map(_name, session.lake().promoted())])


def _name(column: str) -> str:
    """The column as an identifier, quoted when it must be."""
    return column if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else '"' + column.replace('"', '""') + '"'


def _equals(column: str, value: str, kind: pa.DataType) -> str:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return f"{_name(column)} = {literal(value)}"
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return f"{_name(column)} = {value}"
    return f"CAST({_name(column)} AS VARCHAR) = {literal(value)}"
