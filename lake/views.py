"""The SQL views: the current state of event tables, defined once and seen alike by DuckDB and the app."""

from __future__ import annotations

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
    "answers_labelled": (
        "Answers beside what the image is known to be; `correct` is null where no label says so.",
        """SELECT a.*, l.label AS true_label, a.label = l.label AS correct FROM answers a
        LEFT JOIN (SELECT * FROM labels_current WHERE task = 'classification') l USING (image_id)""",
    ),
}

STATEMENTS = [f"CREATE VIEW {name} AS {text}" for name, (_, text) in VIEWS.items()]
