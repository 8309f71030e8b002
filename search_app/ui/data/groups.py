"""Where a model fails: every group of answers anyone can name, judged by what is known, worst first.

Candidates are the values of promoted columns, model versions, answered classes, and the first clusters of the
newest tree. Only aggregates leave the lake, so it costs the same few scans for a thousand rows or a million.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from lake.analytics.statistics import Rate, wilson
from lake.storage.store import literal
from search_app.ui import session
from search_app.ui.data import queries

Kind = Literal["column", "model", "label", "node", "all"]

ENOUGH = 8  # labelled answers below which a group is not judged
MOST_VALUES = 20  # of a promoted column that still name groups
SHOWN = 3
TOLD = 0.9  # share from which a group "is" something: nearly all answered alike, or of one kind
_KEPT = 300


@dataclass(frozen=True)
class Group:
    """One group of answers. Rates count only answers whose image is labelled (`known` of `answers`)."""

    kind: Kind
    name: str  # the column's; else empty
    value: str  # of the column; `name version` of a model; the class; TREE/NODE
    answers: int
    known: int
    right: int
    balanced: float | None  # mean recall over its true classes
    guess: float | None  # the accuracy of always answering its commonest true class
    called: str | None  # its most frequent answer, and that answer's share
    called_share: float
    confidence: float | None  # mean

    @property
    def wrong(self) -> Rate:
        """The error rate, with its 95 % interval."""
        return wilson(self.known - self.right, self.known)

    @property
    def title(self) -> str:
        """As it is called on the screen."""
        match self.kind:
            case "column":
                return f"{self.name.replace('_', ' ')} {self.value}"
            case "label":
                return f"answered “{self.value}”"
            case "node":
                return f"cluster {self.value.partition('/')[2]}"
            case "model":
                return self.value
            case _:
                return "all answers"

    def sql(self) -> str:
        """The predicate over predictions that picks the group out."""
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


def judged(where: str | None) -> list[Group]:
    """Every candidate group inside the filter and, first, the whole; then those with most answers."""
    columns = list(session.lake().promoted())
    tree = next((row["tree"] for row in queries.trees()), None)
    return [Group(**row) for row in queries.rows(_sql(where, columns, tree))]


def worst(groups: Sequence[Group]) -> list[Group]:
    """Up to three groups that are surely worse than the whole: by the lower end of the error rate's interval."""
    overall = next((one.wrong.value for one in groups if one.kind == "all"), None)
    if overall is None:
        return []
    able = [one for one in groups if one.kind != "all" and one.known >= ENOUGH and (one.wrong.low or 0) > overall]
    return sorted(able, key=lambda one: (-(one.wrong.low or 0), one.kind, one.value))[:SHOWN]


def by_column(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each promoted column, most answers first."""
    found: dict[str, list[Group]] = {}
    for one in groups:
        if one.kind == "column":
            found.setdefault(one.name, []).append(one)
    return found


def surest_errors(where: str | None, groups: Sequence[Group], count: int = 3) -> list[list[str]]:
    """For each group the image ids of its most confident wrong answers, surest first."""
    if not groups:
        return []
    picks = [
        f"SELECT * FROM (SELECT {place} AS place, image_id, max(confidence) AS sure FROM errors WHERE {one.sql()}"
        f" GROUP BY image_id ORDER BY sure DESC NULLS LAST, image_id LIMIT {count})"
        for place, one in enumerate(groups)
    ]
    found = queries.rows(f"""
        WITH errors AS MATERIALIZED (SELECT {_wanted()} FROM answers_labelled
                                     WHERE {queries.every(where)} AND NOT correct)
        {" UNION ALL ".join(picks)} ORDER BY place, sure DESC NULLS LAST, image_id""")
    return [[row["image_id"] for row in found if row["place"] == place] for place in range(len(groups))]


@dataclass(frozen=True)
class Sureness:
    """How the known errors (`errors` of them) lie in confidence: in the least confident fifth, above 0.9."""

    errors: int
    low: int
    high: int


def sureness(where: str | None, groups: Sequence[Group]) -> list[Sureness]:
    """For each group; the least confident fifth is that of all answers inside the filter."""
    asked = [
        f"SELECT {place} AS place, count(*) AS errors, count(*) FILTER (confidence <= (FROM fifth)) AS low,"
        f" count(*) FILTER (confidence > 0.9) AS high FROM errors WHERE {one.sql()}"
        for place, one in enumerate(groups)
    ]
    found = queries.rows(f"""
        WITH a AS MATERIALIZED (SELECT {_wanted()}, correct FROM answers_labelled
                                WHERE {queries.every(where)} AND confidence IS NOT NULL),
             fifth AS MATERIALIZED (SELECT quantile_cont(confidence, 0.2) FROM a),
             errors AS MATERIALIZED (SELECT * FROM a WHERE NOT correct)
        {" UNION ALL ".join(asked)} ORDER BY place""")
    return [Sureness(row["errors"], row["low"], row["high"]) for row in found]


def make_up(ids: Sequence[str]) -> dict[str, list[tuple[str, str, float]]]:
    """By node (TREE/NODE): (column, value, share of its answers) where one value has most of them."""
    columns = list(session.lake().promoted())
    if not columns or not ids:
        return {}
    counts = " UNION ALL ".join(
        f"SELECT id, {literal(one)} AS name, CAST({_name(one)} AS VARCHAR) AS value, count(*) AS n FROM a GROUP BY ALL"
        for one in columns
    )
    found = queries.rows(
        f"""WITH a AS MATERIALIZED (SELECT m.id, {", ".join(map(_name, columns))}
                FROM cluster_members m JOIN answers USING (image_id)
                WHERE m.id IN (SELECT unnest(CAST(? AS VARCHAR[])))),
            c AS ({counts})
            SELECT id, name, arg_max(value, n) AS value, max(n) / sum(n) AS share FROM c
            GROUP BY id, name HAVING share >= 0.5 AND value IS NOT NULL ORDER BY id, name""",
        tuple(ids),
    )
    shares: dict[str, list[tuple[str, str, float]]] = {}
    for row in found:
        shares.setdefault(row["id"], []).append((row["name"].replace("_", " "), row["value"], row["share"]))
    return shares


def _sql(where: str | None, columns: Sequence[str], tree: str | None) -> str:
    cell = "true_label AS truth, label AS answer, count(*) AS n, sum(confidence) AS total, count(confidence) AS sure"
    kinds = [
        f"SELECT 'all' AS kind, '' AS name, '' AS value, {cell} FROM a GROUP BY ALL",
        f"SELECT 'label', '', label, {cell} FROM a WHERE label IS NOT NULL GROUP BY ALL",
        f"SELECT 'model', '', model || coalesce(' ' || model_version, '') AS value, {cell} FROM a GROUP BY ALL",
    ]
    kinds += [
        f"SELECT 'column', {literal(one)}, CAST({_name(one)} AS VARCHAR) AS value, {cell} FROM a"
        f" WHERE {_name(one)} IS NOT NULL AND (SELECT count(DISTINCT {_name(one)}) FROM a) <= {MOST_VALUES}"
        " GROUP BY ALL"
        for one in columns
    ]
    if tree is not None:
        kinds.append(
            f"SELECT 'node', '', m.id, {cell} FROM a JOIN cluster_members m USING (image_id)"
            f" SEMI JOIN (SELECT id FROM clusters WHERE tree = {literal(tree)} AND parent = '' AND NOT noise) c"
            f" ON m.id = c.id WHERE m.tree = {literal(tree)} GROUP BY ALL"
        )
    return f"""
        WITH a AS MATERIALIZED (SELECT {_wanted()} FROM answers_labelled WHERE {queries.every(where)}),
        cells AS MATERIALIZED ({" UNION ALL ".join(kinds)}),
        whole AS (SELECT kind, name, value, CAST(sum(n) AS BIGINT) AS answers,
                         CAST(coalesce(sum(n) FILTER (truth IS NOT NULL), 0) AS BIGINT) AS known,
                         CAST(coalesce(sum(n) FILTER (truth = answer), 0) AS BIGINT) AS "right",
                         sum(total) / nullif(sum(sure), 0) AS confidence FROM cells GROUP BY ALL),
        classes AS (SELECT kind, name, value, truth, CAST(sum(n) AS DOUBLE) AS n,
                           coalesce(sum(n) FILTER (truth = answer), 0) / sum(n) AS recall
                    FROM cells WHERE truth IS NOT NULL GROUP BY ALL),
        fair AS (SELECT kind, name, value, avg(recall) AS balanced, max(n) / sum(n) AS guess
                 FROM classes GROUP BY ALL),
        said AS (SELECT kind, name, value, answer, CAST(sum(n) AS DOUBLE) AS n FROM cells GROUP BY ALL),
        usual AS (SELECT kind, name, value, arg_max(answer, n) AS called, max(n) / sum(n) AS called_share
                  FROM said GROUP BY ALL)
        SELECT * FROM whole LEFT JOIN fair USING (kind, name, value) LEFT JOIN usual USING (kind, name, value)
        ORDER BY kind <> 'all', answers DESC, kind, name, value LIMIT {_KEPT}"""


def _wanted() -> str:
    """The columns that groups are made of: never vectors, boxes or masks."""
    own = ["image_id", "label", "confidence", "true_label", "model", "model_version"]
    return ", ".join([*own, *map(_name, session.lake().promoted())])


def _name(column: str) -> str:
    """The column as an identifier, quoted when it must be."""
    return column if re.fullmatch(r"[a-z_][a-z0-9_]*", column) else '"' + column.replace('"', '""') + '"'


def _equals(column: str, value: str, kind: pa.DataType) -> str:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return f"{_name(column)} = {literal(value)}"
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return f"{_name(column)} = {value}"
    return f"CAST({_name(column)} AS VARCHAR) = {literal(value)}"
