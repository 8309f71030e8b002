"""The SQL queries that pages share, each as a cached function.

Results are cached by the versions of the tables, so a new commit is seen at once and no query runs twice. At a million
rows only aggregates and id lists with a LIMIT are returned. It knows no widgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from lake.analytics import summary
from lake.sql.where import predicate
from search_app.backend import model_cache
from search_app.backend.arrivals import version_of
from search_app.ui import session

Row = dict[str, Any]
Stamp = tuple[int, ...]

_TABLES = ("samples", "labels", "reviews", "slices", "clusters", "embedders")

ORDERS = {
    "random": "hash(image_id || '{seed}')",
    "newest": "timestamp DESC NULLS LAST, ingested_at DESC",
    "unsure": "confidence ASC NULLS LAST",
    "errors": "confidence DESC NULLS LAST",
}

# Orders in which the first images can be found from the first rows, without ranking all images.
_ORDERED_BY_ROWS = ("random", "newest")

# One row per image: its newest row that passes the filter, rows with a prediction first.
_IMAGES = """
    SELECT image_id, label, confidence, timestamp, ingested_at FROM samples WHERE {where}
    QUALIFY row_number() OVER (PARTITION BY image_id
                               ORDER BY model IS NULL, timestamp DESC NULLS LAST, ingested_at DESC) = 1"""

# The current label of each image, one class per image.
_LABELS = """(SELECT image_id, label FROM labels_current
    WHERE task = 'classification' AND label IS NOT NULL AND incomplete IS NOT TRUE)"""

# The latest verdicts of customers. Reviews are few; the predictions are looked up by their ids.
_VERDICTS = "(SELECT * FROM reviews_current WHERE origin = 'customer')"
_WRONG = f"(SELECT prediction_id, timestamp AS reported_at FROM {_VERDICTS} WHERE verdict = 'incorrect')"

_COUNTS = 'count(*) AS predictions, count(true_label) AS known, count(*) FILTER (WHERE correct) AS "right"'


def stamp() -> Stamp:
    """The versions of all tables that pages read. It is the key of every cache in this module."""
    lake = session.lake()
    return tuple(lake.version(name) for name in _TABLES)


def news(stamp: Stamp) -> str:
    """The part of a stamp that changes when predictions or verdicts arrive."""
    versions = dict(zip(_TABLES, stamp, strict=True))
    return version_of(versions["samples"], versions["reviews"])


@st.cache_data(max_entries=8, show_spinner=False)
def status(stamp: Stamp) -> dict[str, Any]:
    """`lakeloop status`: counts, models, embedding progress."""
    return dict(summary.status(session.lake()))


@st.cache_data(max_entries=256, show_spinner=False)
def _rows(stamp: Stamp, sql: str, parameters: tuple[Any, ...] = ()) -> list[Row]:
    values = [list(value) if isinstance(value, tuple) else value for value in parameters]
    return list(session.lake().sql(sql, values).to_pylist())


def rows(sql: str, *parameters: Any) -> list[Row]:
    """The rows of a SELECT, as of now. Raises BadInput with DuckDB's message if a filter is not valid SQL."""
    return _rows(stamp(), sql, parameters)


def totals(where: str | None) -> Row:
    """Numbers of images, predictions and labelled (images with a label) inside the filter."""
    return rows(f"""
        WITH p AS (SELECT image_id, model FROM samples WHERE {predicate(where)})
        SELECT count(DISTINCT image_id) AS images, count(model) AS predictions,
               (SELECT count(*) FROM {_LABELS} t WHERE t.image_id IN (SELECT image_id FROM p)) AS labelled
        FROM p""")[0]


def by_day(where: str | None) -> list[Row]:
    """day, predictions, known (labelled), right; ascending. Predictions without a timestamp are left out."""
    return rows(f"""
        SELECT CAST(timestamp AS DATE) AS day, {_COUNTS} FROM predictions_labelled
        WHERE {predicate(where)} AND timestamp IS NOT NULL GROUP BY day ORDER BY day""")


def confusion(where: str | None) -> dict[tuple[str, str | None], int]:
    """Numbers of labelled predictions by (ground truth, prediction)."""
    counts = rows(f"""
        SELECT true_label AS ground_truth, label AS prediction, count(*) AS n FROM predictions_labelled
        WHERE {predicate(where)} AND true_label IS NOT NULL GROUP BY ALL""")
    return {(row["ground_truth"], row["prediction"]): row["n"] for row in counts}


def by_model(where: str | None) -> list[Row]:
    """model, model_version, predictions, known, right, confidence (mean), last (timestamp); most predictions first."""
    return rows(f"""
        SELECT model, model_version, {_COUNTS}, avg(confidence) AS confidence, max(timestamp) AS last
        FROM predictions_labelled WHERE {predicate(where)} GROUP BY ALL ORDER BY predictions DESC LIMIT 50""")


def by_label(where: str | None) -> list[Row]:
    """label (predicted), predictions, known, right, confidence (mean); most predictions first."""
    return rows(f"""
        SELECT label, {_COUNTS}, avg(confidence) AS confidence FROM predictions_labelled
        WHERE {predicate(where)} GROUP BY label ORDER BY predictions DESC LIMIT 200""")


def histogram(where: str | None) -> list[Row]:
    """low (of a bin of width 0.05), verdict (right, wrong, unknown), predictions."""
    return rows(f"""
        SELECT least(floor(confidence * 20), 19) / 20 AS low,
               CASE correct WHEN true THEN 'right' WHEN false THEN 'wrong' ELSE 'unknown' END AS verdict,
               count(*) AS predictions
        FROM predictions_labelled WHERE {predicate(where)} AND confidence BETWEEN 0 AND 1
        GROUP BY ALL ORDER BY low, verdict""")


def verdicts(where: str | None) -> dict[str, int]:
    """Numbers of predictions by the latest verdict of customers: correct, incorrect or unsure."""
    if not _reviews(stamp()):
        return {}
    counts = rows(f"SELECT verdict, count(*) AS n FROM {_VERDICTS} WHERE {_inside(where)} GROUP BY verdict")
    return {row["verdict"]: row["n"] for row in counts}


def complaints(where: str | None, limit: int) -> list[Row]:
    """The newest predictions that customers report as incorrect: prediction_id, image_id, timestamp (of the report),
    comment, ticket; label and confidence of the prediction; truth (the label) of the image. Latest first.
    """
    reports = rows(f"""
        WITH r AS (SELECT prediction_id, image_id, timestamp, comment, ticket, event_id FROM {_VERDICTS}
                      WHERE verdict = 'incorrect' AND {_inside(where)}
                      ORDER BY timestamp DESC, event_id LIMIT {int(limit)})
        SELECT r.* EXCLUDE (event_id), t.label AS truth FROM r LEFT JOIN {_LABELS} t USING (image_id)
        ORDER BY timestamp DESC, event_id""")
    predictions = _predictions(stamp(), tuple(row["prediction_id"] for row in reports))
    return [{**row, **predictions.get(row["prediction_id"], {"label": None, "confidence": None})} for row in reports]


def _inside(where: str | None) -> str:
    return f"prediction_id IN (SELECT prediction_id FROM samples WHERE {predicate(where)})" if where else "true"


@st.cache_data(max_entries=8, show_spinner=False)
def _reviews(stamp: Stamp) -> int:
    return int(session.lake().dataset("reviews").count_rows())


@st.cache_data(max_entries=64, show_spinner=False)
def _predictions(stamp: Stamp, prediction_ids: tuple[str, ...]) -> dict[str, Row]:
    names = ["prediction_id", "label", "confidence"]
    matches = session.lake().look_up("samples", names, "prediction_id", prediction_ids).to_pylist()
    return {row["prediction_id"]: {"label": row["label"], "confidence": row["confidence"]} for row in matches}


def without_thumbnail(where: str | None) -> list[Row]:
    """reason and images: images that cannot be shown since they do not decode or were not stored. Most first."""
    return rows(f"""
        SELECT image_status AS reason, count(DISTINCT image_id) AS images FROM samples
        WHERE image_status IS NOT NULL AND {predicate(where)} GROUP BY image_status ORDER BY images DESC, reason""")


@st.cache_data(max_entries=8, show_spinner=False)
def text_embedders(stamp: Stamp) -> frozenset[str]:
    """Names of the embedders that embed text, too."""
    return frozenset(embedder.name for embedder in session.lake().embedders() if embedder.embeds_text)


def labels() -> list[str]:
    """Predicted classes, most frequent first."""
    matches = rows(
        "SELECT label FROM predictions WHERE label IS NOT NULL GROUP BY label ORDER BY count(*) DESC LIMIT 500"
    )
    return [row["label"] for row in matches]


def models() -> list[str]:
    """`name version` of every model with predictions, newest first."""
    matches = rows("""SELECT model || coalesce(' ' || model_version, '') AS name FROM predictions GROUP BY name
                    ORDER BY max(timestamp) DESC NULLS LAST, name LIMIT 100""")
    return [row["name"] for row in matches]


def days() -> Row:
    """first and last day (dates) of the predictions; None if none has a timestamp."""
    return rows("SELECT CAST(min(timestamp) AS DATE) AS first, CAST(max(timestamp) AS DATE) AS last FROM samples")[0]


def sample(where: str | None, order: str, seed: int, limit: int) -> list[Row]:
    """image_id, label, confidence of `limit` images in one of ORDERS. The same seed gives the same random images.

    The order "errors" has only predictions that differ from the label, "complaints" only those that customers report
    as incorrect.
    """
    if order == "complaints":
        return rows(f"""
            SELECT image_id, label, confidence
            FROM (SELECT prediction_id, image_id, label, confidence FROM samples WHERE {predicate(where)})
            JOIN {_WRONG} USING (prediction_id)
            QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY reported_at DESC, prediction_id) = 1
            ORDER BY reported_at DESC, image_id LIMIT {int(limit)}""")
    if order == "errors":
        wrong = f"SELECT prediction_id FROM predictions_labelled WHERE {predicate(where)} AND NOT correct"
        where = f"prediction_id IN ({wrong})"
    by = ORDERS[order].format(seed=int(seed))
    shown = f"SELECT image_id, label, confidence FROM ({_IMAGES}) ORDER BY {by}, image_id LIMIT {int(limit)}"
    if order in _ORDERED_BY_ROWS:
        # The first rows are enough unless images have more than four each. This avoids ranking a million images.
        front = f"SELECT image_id FROM samples WHERE {predicate(where)} ORDER BY {by}, image_id LIMIT {4 * int(limit)}"
        matches = rows(shown.format(where=f"{predicate(where)} AND image_id IN ({front})"))
        if len(matches) == limit:
            return matches
    return rows(shown.format(where=predicate(where)))


def image_facts(image_ids: list[str]) -> dict[str, Row]:
    """width, height and truth (the label, or None) by image_id."""
    matches = rows(
        f"""SELECT i.image_id, i.width, i.height, t.label AS truth
            FROM images i LEFT JOIN {_LABELS} t USING (image_id)
            WHERE i.image_id IN (SELECT unnest(CAST(? AS VARCHAR[])))""",
        tuple(image_ids),
    )
    return {row["image_id"]: row for row in matches}


def slices() -> list[Row]:
    """id (NAME@VERSION), name, version, size, role of the slices whose members are stored; newest first."""
    return rows("""SELECT id, name, version, size, role FROM slices
                   WHERE deleted_at IS NULL AND NOT coalesce(live, false) ORDER BY created_at DESC LIMIT 200""")


def trees() -> list[Row]:
    """tree, embedder, size, filter, created_at of every drill-down tree, newest first."""
    return rows("""SELECT tree, embedder, size, "where" AS filter, created_at FROM clusters
                   WHERE node = '' ORDER BY created_at DESC LIMIT 50""")


_NODE = """id, tree, node, parent, size, noise, method, params, medoids, borderline, errors, compactness, persistence,
           noise_share, suggested, name, created_at"""


def node(tree: str, path: str) -> Row | None:
    """One node of a tree, or None."""
    matches = rows(f"SELECT {_NODE} FROM clusters WHERE tree = ? AND node = ?", tree, path)
    return matches[0] if matches else None


def names(tree: str) -> dict[str, str]:
    """The names that people gave to nodes of a tree, by path."""
    matches = rows("SELECT node, name FROM clusters WHERE tree = ? AND name IS NOT NULL", tree)
    return {row["node"]: row["name"] for row in matches}


def children(tree: str, path: str) -> list[Row]:
    """The children of a node: as of `node`, and predictions, confidence (mean), known (labelled), right,
    labels (predictions by class, most frequent first: n, label). Largest first.
    """
    return rows(
        f"""
        WITH c AS (SELECT {_NODE} FROM clusters WHERE tree = ? AND parent = ?),
             a AS (SELECT m.id, p.label, p.confidence, p.true_label, p.correct
                   FROM cluster_members m SEMI JOIN c USING (id) JOIN predictions_labelled p USING (image_id)),
             s AS (SELECT id, {_COUNTS}, avg(confidence) AS confidence FROM a GROUP BY id),
             l AS (SELECT id, list({{'n': n, 'label': label}} ORDER BY n DESC, label) AS labels
                   FROM (SELECT id, label, count(*) AS n FROM a GROUP BY ALL) GROUP BY id)
        SELECT c.*, s.* EXCLUDE (id), l.labels FROM c LEFT JOIN s USING (id) LEFT JOIN l USING (id)
        ORDER BY c.size DESC, c.node""",
        tree,
        path,
    )


def assigned(node_id: str) -> Row:
    """assigned (images assigned to a node after it was made) and newest (when the last one was)."""
    return rows(
        "SELECT count(assigned_at) AS assigned, max(assigned_at) AS newest FROM cluster_members WHERE id = ?", node_id
    )[0]


def search(search_id: str) -> Row:
    """node and filter of an existing active search: where it searches; both null for the whole lake."""
    return rows('SELECT node, "where" AS filter FROM searches WHERE id = ?', search_id)[0]


def predictions_of(image_ids: Sequence[str]) -> list[Row]:
    """image_id, label, confidence of these images, in their order; images no longer in the lake are left out."""
    matches = rows(_IMAGES.format(where="image_id IN (SELECT unnest(CAST(? AS VARCHAR[])))"), tuple(image_ids))
    position = {image_id: i for i, image_id in enumerate(image_ids)}
    return sorted(matches, key=lambda row: position[row["image_id"]])


def members(node_id: str, limit: int) -> list[Row]:
    """image_id, label, confidence of the images in a node (TREE/NODE), most confident first."""
    inside = "image_id IN (SELECT image_id FROM cluster_members WHERE id = ?)"
    return rows(
        f"""SELECT image_id, label, confidence FROM ({_IMAGES.format(where=inside)})
            ORDER BY confidence DESC NULLS LAST, image_id LIMIT {int(limit)}""",
        node_id,
    )


@st.cache_data(max_entries=64, show_spinner=False)
def _similar(
    stamp: Stamp, k: int, where: str | None, embedder: str, query: str, ids: tuple[str, ...], text: str
) -> list[Row]:
    from embeddings.search.search import search

    lake = session.lake()
    example: dict[str, Any] = {"ids": ids}
    if query or text:  # only these need the network
        example = {"model": model_cache.loaded(lake, embedder)}
        example |= {"image": session.query_images().get(query)} if query else {"text": text}
    return list(search(lake, k=k, where=where, embedder=embedder, **example).to_pylist())


def similar(
    k: int, where: str | None, embedder: str, query: str = "", ids: tuple[str, ...] = (), text: str = ""
) -> list[Row]:
    """The `k` images most similar to an uploaded query image, the mean of `ids`, or a text; best first."""
    return _similar(stamp(), k, where, embedder, query, ids, text)
