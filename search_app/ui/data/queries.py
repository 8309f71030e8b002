"""Every question the pages ask the lake: the SQL text, and a cached call for each.

Answers are cached by the versions of the tables they read, so a new commit is seen at once and nothing is
asked twice. At a million rows only aggregates and LIMITed id lists come back. It knows no widgets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from lake.analytics import summary
from search_app.backend import model_cache
from search_app.backend.arrivals import version_of
from search_app.ui import session

Row = dict[str, Any]
Stamp = tuple[int, ...]

_READ = ("predictions", "labels", "reviews", "slices", "clusters", "embedders")

ORDERS = {
    "random": "hash(image_id || '{seed}')",
    "newest": "timestamp DESC NULLS LAST, ingested_at DESC",
    "unsure": "confidence ASC NULLS LAST",
    "errors": "confidence DESC NULLS LAST",
}

# Orders in which an image's first row and its shown row lead to the same first images.
_KEPT_BY_ROWS = ("random", "newest")

# One row an image: its newest row that passes the filter, rows with an answer first.
_IMAGES = """
    SELECT image_id, label, confidence, timestamp, ingested_at FROM predictions WHERE {where}
    QUALIFY row_number() OVER (PARTITION BY image_id
                               ORDER BY model IS NULL, timestamp DESC NULLS LAST, ingested_at DESC) = 1"""

# The known truth, one class an image.
_TRUTH = "(SELECT image_id, label FROM labels_current WHERE task = 'classification' AND label IS NOT NULL)"

# What customers say now. Only reviews, of which there are few: answers are looked up by their ids.
_SAID = "(SELECT * FROM reviews_current WHERE origin = 'customer')"
_WRONG = f"(SELECT prediction_id, timestamp AS said_at FROM {_SAID} WHERE verdict = 'incorrect')"

_COUNTS = 'count(*) AS answers, count(true_label) AS known, count(*) FILTER (WHERE correct) AS "right"'


def every(where: str | None) -> str:
    """A filter as a predicate; everything when there is none."""
    return f"({where})" if where else "true"


def stamp() -> Stamp:
    """The versions of every table a page reads: the key of every cache here."""
    lake = session.lake()
    return tuple(lake.version(name) for name in _READ)


def news(stamp: Stamp) -> str:
    """The part of a stamp that changes when answers or verdicts arrive."""
    at = dict(zip(_READ, stamp, strict=True))
    return version_of(at["predictions"], at["reviews"])


@st.cache_data(max_entries=8, show_spinner=False)
def status(stamp: Stamp) -> dict[str, Any]:
    """`lakeloop status`: counts, models, embedding progress."""
    return dict(summary.status(session.lake()))


@st.cache_data(max_entries=256, show_spinner=False)
def _rows(stamp: Stamp, sql: str, parameters: tuple[Any, ...] = ()) -> list[Row]:
    values = [list(one) if isinstance(one, tuple) else one for one in parameters]
    return list(session.lake().sql(sql, values).to_pylist())


def rows(sql: str, *parameters: Any) -> list[Row]:
    """The rows of a SELECT, as of now. Raises BadInput with DuckDB's words when a user's filter is wrong."""
    return _rows(stamp(), sql, parameters)


def totals(where: str | None) -> Row:
    """images, answers and labelled (images whose class is known) inside the filter."""
    return rows(f"""
        WITH p AS (SELECT image_id, model FROM predictions WHERE {every(where)})
        SELECT count(DISTINCT image_id) AS images, count(model) AS answers,
               (SELECT count(*) FROM {_TRUTH} t WHERE t.image_id IN (SELECT image_id FROM p)) AS labelled
        FROM p""")[0]


def by_day(where: str | None) -> list[Row]:
    """day, answers, known (truth known), right; ascending. Answers without a time are left out."""
    return rows(f"""
        SELECT CAST(timestamp AS DATE) AS day, {_COUNTS} FROM answers_labelled
        WHERE {every(where)} AND timestamp IS NOT NULL GROUP BY day ORDER BY day""")


def confusion(where: str | None) -> dict[tuple[str, str | None], int]:
    """How many answers by (truth, answer), where the truth is known."""
    found = rows(f"""
        SELECT true_label AS truth, label AS answer, count(*) AS n FROM answers_labelled
        WHERE {every(where)} AND true_label IS NOT NULL GROUP BY ALL""")
    return {(row["truth"], row["answer"]): row["n"] for row in found}


def by_model(where: str | None) -> list[Row]:
    """model, model_version, answers, known, right, confidence (mean), last (time); most answers first."""
    return rows(f"""
        SELECT model, model_version, {_COUNTS}, avg(confidence) AS confidence, max(timestamp) AS last
        FROM answers_labelled WHERE {every(where)} GROUP BY ALL ORDER BY answers DESC LIMIT 50""")


def by_label(where: str | None) -> list[Row]:
    """label (as answered), answers, known, right, confidence (mean); most answers first."""
    return rows(f"""
        SELECT label, {_COUNTS}, avg(confidence) AS confidence FROM answers_labelled
        WHERE {every(where)} GROUP BY label ORDER BY answers DESC LIMIT 200""")


def histogram(where: str | None) -> list[Row]:
    """low (of a bin of width 0.05), verdict (right, wrong, unknown), answers."""
    return rows(f"""
        SELECT least(floor(confidence * 20), 19) / 20 AS low,
               CASE correct WHEN true THEN 'right' WHEN false THEN 'wrong' ELSE 'unknown' END AS verdict,
               count(*) AS answers
        FROM answers_labelled WHERE {every(where)} AND confidence BETWEEN 0 AND 1
        GROUP BY ALL ORDER BY low, verdict""")


def verdicts(where: str | None) -> dict[str, int]:
    """How many answers customers call correct, incorrect or unsure: their latest word on each."""
    if not _reviews(stamp()):
        return {}
    found = rows(f"SELECT verdict, count(*) AS n FROM {_SAID} WHERE {_about(where)} GROUP BY verdict")
    return {row["verdict"]: row["n"] for row in found}


def complaints(where: str | None, limit: int) -> list[Row]:
    """The newest answers that customers call incorrect: prediction_id, image_id, timestamp (when it was said),
    comment, ticket; label and confidence of the answer, truth of the image. Latest first.
    """
    said = rows(f"""
        WITH said AS (SELECT prediction_id, image_id, timestamp, comment, ticket, event_id FROM {_SAID}
                      WHERE verdict = 'incorrect' AND {_about(where)}
                      ORDER BY timestamp DESC, event_id LIMIT {int(limit)})
        SELECT said.* EXCLUDE (event_id), t.label AS truth FROM said LEFT JOIN {_TRUTH} t USING (image_id)
        ORDER BY timestamp DESC, event_id""")
    answers = _answers(stamp(), tuple(row["prediction_id"] for row in said))
    return [{**row, **answers.get(row["prediction_id"], {"label": None, "confidence": None})} for row in said]


def _about(where: str | None) -> str:
    return f"prediction_id IN (SELECT prediction_id FROM predictions WHERE {where})" if where else "true"


@st.cache_data(max_entries=8, show_spinner=False)
def _reviews(stamp: Stamp) -> int:
    return int(session.lake().dataset("reviews").count_rows())


@st.cache_data(max_entries=64, show_spinner=False)
def _answers(stamp: Stamp, prediction_ids: tuple[str, ...]) -> dict[str, Row]:
    names = ["prediction_id", "label", "confidence"]
    found = session.lake().look_up("predictions", names, "prediction_id", prediction_ids).to_pylist()
    return {row["prediction_id"]: {"label": row["label"], "confidence": row["confidence"]} for row in found}


def pictureless(where: str | None) -> list[Row]:
    """reason and images: of images that cannot be shown, since they do not decode or were not kept. Most first."""
    return rows(f"""
        SELECT image_status AS reason, count(DISTINCT image_id) AS images FROM predictions
        WHERE image_status IS NOT NULL AND {every(where)} GROUP BY image_status ORDER BY images DESC, reason""")


@st.cache_data(max_entries=8, show_spinner=False)
def text_embedders(stamp: Stamp) -> frozenset[str]:
    """Names of the embedders that can be asked in words."""
    return frozenset(one.name for one in session.lake().embedders() if one.embeds_text)


def labels() -> list[str]:
    """Answered classes, commonest first."""
    found = rows("SELECT label FROM answers WHERE label IS NOT NULL GROUP BY label ORDER BY count(*) DESC LIMIT 500")
    return [row["label"] for row in found]


def models() -> list[str]:
    """`name version` of every model that answered, newest first."""
    found = rows("""SELECT model || coalesce(' ' || model_version, '') AS name FROM answers GROUP BY name
                    ORDER BY max(timestamp) DESC NULLS LAST, name LIMIT 100""")
    return [row["name"] for row in found]


def days() -> Row:
    """first and last day (dates) that an answer carries; None when no answer has a time."""
    return rows("SELECT CAST(min(timestamp) AS DATE) AS first, CAST(max(timestamp) AS DATE) AS last FROM predictions")[
        0
    ]


def sample(where: str | None, order: str, seed: int, limit: int) -> list[Row]:
    """image_id, label, confidence of `limit` images in one of ORDERS; a seed gives the same images again.

    The order "errors" has only answers that are known to be wrong, "complaints" only those customers call incorrect.
    """
    if order == "complaints":
        return rows(f"""
            SELECT image_id, label, confidence
            FROM (SELECT prediction_id, image_id, label, confidence FROM predictions WHERE {every(where)})
            JOIN {_WRONG} USING (prediction_id)
            QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY said_at DESC, prediction_id) = 1
            ORDER BY said_at DESC, image_id LIMIT {int(limit)}""")
    if order == "errors":
        wrong = f"SELECT prediction_id FROM answers_labelled WHERE {every(where)} AND NOT correct"
        where = f"prediction_id IN ({wrong})"
    by = ORDERS[order].format(seed=int(seed))
    shown = f"SELECT image_id, label, confidence FROM ({_IMAGES}) ORDER BY {by}, image_id LIMIT {int(limit)}"
    if order in _KEPT_BY_ROWS:
        # Enough rows from the front, unless images have more than four each: spares ranking a million.
        front = f"SELECT image_id FROM predictions WHERE {every(where)} ORDER BY {by}, image_id LIMIT {4 * int(limit)}"
        found = rows(shown.format(where=f"{every(where)} AND image_id IN ({front})"))
        if len(found) == limit:
            return found
    return rows(shown.format(where=every(where)))


def faces(image_ids: list[str]) -> dict[str, Row]:
    """width, height and truth (or None) by image_id: what a grid needs to draw beside label and number."""
    found = rows(
        f"""SELECT i.image_id, i.width, i.height, t.label AS truth
            FROM images i LEFT JOIN {_TRUTH} t USING (image_id)
            WHERE i.image_id IN (SELECT unnest(CAST(? AS VARCHAR[])))""",
        tuple(image_ids),
    )
    return {row["image_id"]: row for row in found}


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
    found = rows(f"SELECT {_NODE} FROM clusters WHERE tree = ? AND node = ?", tree, path)
    return found[0] if found else None


def names(tree: str) -> dict[str, str]:
    """What people call the nodes of a tree, by path; those without a name are left out."""
    found = rows("SELECT node, name FROM clusters WHERE tree = ? AND name IS NOT NULL", tree)
    return {row["node"]: row["name"] for row in found}


def children(tree: str, path: str) -> list[Row]:
    """The nodes right below one: as `node` gives them, and answers, confidence (mean), known, right, labels
    (answers by class, commonest first: n, label). Largest first.
    """
    return rows(
        f"""
        WITH c AS (SELECT {_NODE} FROM clusters WHERE tree = ? AND parent = ?),
             a AS (SELECT m.id, p.label, p.confidence, p.true_label, p.correct
                   FROM cluster_members m SEMI JOIN c USING (id) JOIN answers_labelled p USING (image_id)),
             s AS (SELECT id, {_COUNTS}, avg(confidence) AS confidence FROM a GROUP BY id),
             l AS (SELECT id, list({{'n': n, 'label': label}} ORDER BY n DESC, label) AS labels
                   FROM (SELECT id, label, count(*) AS n FROM a GROUP BY ALL) GROUP BY id)
        SELECT c.*, s.* EXCLUDE (id), l.labels FROM c LEFT JOIN s USING (id) LEFT JOIN l USING (id)
        ORDER BY c.size DESC, c.node""",
        tree,
        path,
    )


def assigned(node_id: str) -> Row:
    """assigned (how many images joined a node after it was made) and newest (when the last of them did)."""
    return rows(
        "SELECT count(assigned_at) AS assigned, max(assigned_at) AS newest FROM cluster_members WHERE id = ?", node_id
    )[0]


def search(search_id: str) -> Row:
    """node and filter of an active search that exists: where it looks, null for everywhere."""
    return rows('SELECT node, "where" AS filter FROM searches WHERE id = ?', search_id)[0]


def answers_of(image_ids: Sequence[str]) -> list[Row]:
    """image_id, label, confidence of these images, in their order; those the lake no longer has are left out."""
    found = rows(_IMAGES.format(where="image_id IN (SELECT unnest(CAST(? AS VARCHAR[])))"), tuple(image_ids))
    place = {one: at for at, one in enumerate(image_ids)}
    return sorted(found, key=lambda row: place[row["image_id"]])


def members(node_id: str, limit: int) -> list[Row]:
    """image_id, label, confidence of the images in a node (TREE/NODE), surest first."""
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
    what: dict[str, Any] = {"ids": ids}
    if query or text:  # only these need the network
        what = {"model": model_cache.loaded(lake, embedder)}
        what |= {"image": session.query_images().get(query)} if query else {"text": text}
    return list(search(lake, k=k, where=where, embedder=embedder, **what).to_pylist())


def similar(
    k: int, where: str | None, embedder: str, query: str = "", ids: tuple[str, ...] = (), text: str = ""
) -> list[Row]:
    """The `k` images most like one uploaded query image, the mean of `ids`, or a text; best first."""
    return _similar(stamp(), k, where, embedder, query, ids, text)
