"""The SQL views: the current state of event tables, defined once and seen alike by DuckDB and the app."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lake import schema

if TYPE_CHECKING:
    from collections.abc import Iterable

VIEWS = {
    "answers": (
        "Predictions a model made: rows that only make an unanswered image findable are left out.",
        "SELECT * FROM predictions WHERE model IS NOT NULL",
    ),
    "labels_current": (
        "The latest statement about each image (of equal moments, the one with the greatest event_id).",
        """SELECT * FROM labels
        QUALIFY row_number() OVER (PARTITION BY image_id, task ORDER BY timestamp DESC, event_id DESC) = 1""",
    ),
    "reviews_current": (
        "The latest verdict on each answer from each origin (of equal moments, the one with the greatest event_id).",
        """SELECT * FROM reviews
        QUALIFY row_number() OVER (PARTITION BY prediction_id, origin ORDER BY timestamp DESC, event_id DESC) = 1""",
    ),
    "marks_current": (
        "What a person last said of each image in an active search; marks that were taken back are left out.",
        """SELECT * FROM (SELECT * FROM marks
        QUALIFY row_number() OVER (PARTITION BY search, image_id ORDER BY timestamp DESC, event_id DESC) = 1)
        WHERE mark <> 'none'""",
    ),
    "answers_judged": (
        (
            "Answers beside what the image is known to be; `correct` is what its label says or, where none does, a "
            "person's latest verdict, correct or incorrect; `judged_by` is label, verdict or null."
        ),
        """SELECT a.*, l.label AS true_label, coalesce(a.label = l.label, v.verdict = 'correct') AS correct,
               CASE WHEN (a.label = l.label) IS NOT NULL THEN 'label' WHEN v.verdict IS NOT NULL THEN 'verdict' END
                   AS judged_by
        FROM answers a
        LEFT JOIN (SELECT image_id, label FROM labels_current WHERE task = 'classification') l USING (image_id)
        LEFT JOIN (SELECT prediction_id, verdict FROM reviews_current WHERE verdict IN ('correct', 'incorrect')
                   QUALIFY row_number() OVER (PARTITION BY prediction_id ORDER BY timestamp DESC, event_id DESC) = 1) v
            USING (prediction_id)""",
    ),
    "answers_labelled": (
        "Answers beside what the image is known to be; `correct` is null where no label says so.",
        """SELECT a.*, l.label AS true_label, a.label = l.label AS correct FROM answers a
        LEFT JOIN (SELECT * FROM labels_current WHERE task = 'classification') l USING (image_id)""",
    ),
}


def statements(tables: Iterable[str]) -> list[str]:
    """SQL that makes every view that reads nothing but these tables."""
    there, made = {*tables}, []
    for name, (_, text) in VIEWS.items():  # a view comes after those it reads
        if reads(text) <= there:
            there.add(name)
            made.append(f"CREATE VIEW {name} AS {text}")
    return made


def reads(text: str) -> set[str]:
    """The tables and views that a query's text names, by their bare names; more than it reads, never less."""
    return {word for word in re.findall(r"\w+", text.lower()) if word in schema.TABLES or word in VIEWS}
