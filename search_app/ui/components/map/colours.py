"""The colours of a map: one byte for each point, and the legend that explains the bytes.

Codes below 250 are the number of a class or a level of a range; the others are named below. Only the newest
prediction of an image counts.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st

from lake.sql.where import predicate
from search_app.ui import session
from search_app.ui.data import queries

OTHER, OUTSIDE, NONE = 253, 254, 255
LEVELS = 249  # the highest level of a range
MOST_CLASSES = 12

KINDS = {"label": "Label", "cluster": "Cluster", "confidence": "Confidence", "error": "Error", "time": "Time"}


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend: a code, what it means, and how many points have it."""

    code: int
    name: str
    n: int


@dataclass(frozen=True)
class Legend:
    """`kind`: classes, verdict (fixed colours) or range (from `low` to `high`, shown as the texts `ends`)."""

    kind: str
    entries: list[LegendEntry] = field(default_factory=list)
    low: float = 0.0
    high: float = 1.0
    ends: list[str] = field(default_factory=list)
    unit: str = ""


@dataclass(frozen=True)
class Colours:
    """`codes`: uint8 (n,), in the order of the map's points."""

    codes: np.ndarray
    legend: Legend


def colours(map_id: str, tag: str, by: str, where: str | None, tree: str | None) -> Colours:
    """One code for each of the map's points, in the order of image_ids; points outside the filter `where` are OUTSIDE.

    `by` is one of KINDS; for "cluster", `tree` is the node (TREE/PATH) whose children give the colours.
    """
    return _colours(queries.stamp(), map_id, tag, by, where, tree)


@st.cache_data(max_entries=12, show_spinner=False)
def _colours(stamp: queries.Stamp, map_id: str, tag: str, by: str, where: str | None, tree: str | None) -> Colours:
    wanted = {
        "label": "label AS value",
        "cluster": "NULL AS value",
        "confidence": "confidence AS value",
        "error": "CASE correct WHEN true THEN 'right' WHEN false THEN 'wrong' END AS value",
        "time": "epoch(timestamp) AS value",
    }[by]
    newest = f"""SELECT image_id, {wanted} FROM predictions_labelled
        WHERE image_id IN (SELECT image_id FROM m) AND {predicate(where)}
        QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY timestamp DESC NULLS LAST, ingested_at DESC) = 1"""
    parameters: list[Any] = [map_id]
    if by == "cluster":
        newest = """SELECT image_id, any_value(c.node) AS value FROM cluster_members c
            SEMI JOIN (SELECT id FROM clusters WHERE tree = ? AND parent = ?) USING (id) GROUP BY image_id"""
        parameters += [*(tree or "/").split("/", 1)]
    inside = f"(SELECT DISTINCT image_id, true AS inside FROM samples WHERE {predicate(where)})"
    table = session.lake().sql(
        f"""WITH m AS MATERIALIZED (SELECT DISTINCT image_id FROM map_points WHERE map = ?), v AS ({newest})
            SELECT v.value, i.inside FROM m LEFT JOIN v USING (image_id) LEFT JOIN {inside} i USING (image_id)
            ORDER BY m.image_id""",
        parameters,
    )
    outside = table["inside"].is_null().to_numpy()
    if by in ("confidence", "time"):
        return _range(table["value"], outside, by)
    return _classes(table["value"].cast(pa.string()), outside, by)


def _classes(values: pa.ChunkedArray, outside: np.ndarray, by: str) -> Colours:
    coded = values.combine_chunks().dictionary_encode()
    names = coded.dictionary.to_pylist()
    numbers = coded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
    counts = np.bincount(numbers[~outside], minlength=len(names) + 1)
    codes = np.full(len(names) + 1, OTHER, np.uint8)
    codes[-1] = NONE
    entries = []
    if by == "error":
        for code, name in enumerate(("right", "wrong")):
            if name in names:
                codes[names.index(name)] = code
                entries.append(LegendEntry(code, name, int(counts[names.index(name)])))
    else:
        ranked = sorted((i for i in range(len(names)) if counts[i]), key=lambda i: (-counts[i], names[i]))
        for code, i in enumerate(ranked[:MOST_CLASSES]):
            codes[i] = code
            entries.append(LegendEntry(code, f"Cluster {names[i]}" if by == "cluster" else names[i], int(counts[i])))
        rest = ranked[MOST_CLASSES:]
        if rest:
            entries.append(LegendEntry(OTHER, f"{len(rest)} more", int(sum(counts[i] for i in rest))))
    missing = {"label": "no prediction", "cluster": "in no cluster of this tree", "error": "not labelled"}[by]
    if counts[-1]:
        entries.append(LegendEntry(NONE, missing, int(counts[-1])))
    return _with_outside(codes[numbers], outside, Legend("verdict" if by == "error" else "classes", entries))


def _range(values: pa.ChunkedArray, outside: np.ndarray, by: str) -> Colours:
    numbers = values.cast(pa.float64()).to_numpy()
    valid = np.isfinite(numbers) & ~outside
    low, high = (0.0, 1.0) if by == "confidence" else (0.0, 0.0)
    if by == "time" and valid.any():
        low, high = float(numbers[valid].min()), float(numbers[valid].max())
    levels = np.clip(np.nan_to_num((numbers - low) / ((high - low) or 1.0)), 0, 1) * LEVELS
    codes = np.where(np.isfinite(numbers), np.round(levels), NONE).astype(np.uint8)
    missing = int((~np.isfinite(numbers) & ~outside).sum())
    entries = [LegendEntry(NONE, f"no {by}", missing)] if missing else []
    ends = ["0", "1"]
    if by == "time":
        ends = [f"{dt.datetime.fromtimestamp(end, dt.UTC):%d %b %Y}" for end in (low, high)] if valid.any() else []
    return _with_outside(codes, outside, Legend("range", entries, low, high, ends, by))


def _with_outside(codes: np.ndarray, outside: np.ndarray, legend: Legend) -> Colours:
    codes = np.where(outside, OUTSIDE, codes).astype(np.uint8)
    if outside.any():
        legend.entries.append(LegendEntry(OUTSIDE, "outside the filters", int(outside.sum())))
    return Colours(codes, legend)
