"""The SQL views over the tables, such as the current state of event tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lake.storage import schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import duckdb
    import pyarrow as pa

# Views by their names in lakes made before table predictions was named samples.
RENAMED = {
    "answers": "predictions",
    "answers_labelled": "predictions_labelled",
    "answers_judged": "predictions_reviewed",
}
# What samples_reviewed adds to the columns of samples.
REVIEWED = ("true_label", "correct", "judged_by")
# What others name the first of them.
_TRUE_LABEL = {"label_true", "ground_truth", "gt", "truth", "true_class", "y_true", "actual", "target"}

VIEWS = {
    "predictions": (
        "Predictions of models, without the rows for images that have no prediction.",
        "SELECT * FROM samples WHERE model IS NOT NULL",
    ),
    "labels_current": (
        "The latest label of each image and task (at equal times, the one with the greatest event_id).",
        """SELECT * FROM labels
        QUALIFY row_number() OVER (PARTITION BY image_id, task ORDER BY timestamp DESC, event_id DESC) = 1""",
    ),
    "reviews_current": (
        "The latest verdict on each prediction from each origin (at equal times, the one with the greatest event_id).",
        """SELECT * FROM reviews
        QUALIFY row_number() OVER (PARTITION BY prediction_id, origin ORDER BY timestamp DESC, event_id DESC) = 1""",
    ),
    "marks_current": (
        "The latest mark on each image in an active search, without marks that were taken back.",
        """SELECT * FROM (SELECT * FROM marks
        QUALIFY row_number() OVER (PARTITION BY search, image_id ORDER BY timestamp DESC, event_id DESC) = 1)
        WHERE mark <> 'none'""",
    ),
    "samples_reviewed": (
        (
            "Samples with the image's ground truth, if it is complete; `correct` compares with the label or, without a "
            "label, takes a person's latest verdict, correct or incorrect; `judged_by` is label, verdict or null."
        ),
        """SELECT a.*, l.label AS true_label, coalesce(a.label = l.label, v.verdict = 'correct') AS correct,
               CASE WHEN (a.label = l.label) IS NOT NULL THEN 'label' WHEN v.verdict IS NOT NULL THEN 'verdict' END
                   AS judged_by
        FROM samples a
        LEFT JOIN (SELECT image_id, label FROM labels_current
                   WHERE task = 'classification' AND incomplete IS NOT TRUE) l USING (image_id)
        LEFT JOIN (SELECT prediction_id, verdict FROM reviews_current WHERE verdict IN ('correct', 'incorrect')
                   QUALIFY row_number() OVER (PARTITION BY prediction_id ORDER BY timestamp DESC, event_id DESC) = 1) v
            USING (prediction_id)""",
    ),
    "predictions_reviewed": (
        "The predictions of samples_reviewed.",
        "SELECT * FROM samples_reviewed WHERE model IS NOT NULL",
    ),
    "predictions_labelled": (
        "Predictions with the image's label; `correct` is null if the image has no complete label.",
        """SELECT a.*, l.label AS true_label, a.label = l.label AS correct FROM predictions a
        LEFT JOIN (SELECT * FROM labels_current
                   WHERE task = 'classification' AND incomplete IS NOT TRUE) l USING (image_id)""",
    ),
    "shadow_disagreements": (
        (
            "Shadow predictions that differ from the production prediction for the same query: another label, or "
            "another number of boxes or masks. `shadow_run` is the run of the shadow model."
        ),
        """SELECT p.prediction_id, p.image_id, p.timestamp, p.model, p.model_version, s.run AS shadow_run, p.label,
               s.label AS shadow_label, p.confidence, s.confidence AS shadow_confidence,
               coalesce(len(p.boxes), 0) AS boxes, coalesce(len(s.boxes), 0) AS shadow_boxes,
               coalesce(len(p.masks), 0) AS masks, coalesce(len(s.masks), 0) AS shadow_masks, s.at
        FROM scores s JOIN samples p USING (prediction_id)
        WHERE p.label IS DISTINCT FROM s.label
            OR coalesce(len(p.boxes), 0) <> coalesce(len(s.boxes), 0)
            OR coalesce(len(p.masks), 0) <> coalesce(len(s.masks), 0)""",
    ),
    "models": (
        (
            "The current state of every model's versions; `status` is registered, canary, promoted, shadow or "
            "retired; `gate` is the verdict behind the latest promotion or canary, `reason` the reason of the latest "
            "event, `share` the share of images that a canary predicts, `limits` when it is rolled back."
        ),
        """SELECT model, version, run,
               CASE WHEN stands AND promoted_at = max(promoted_at) FILTER (stands) OVER (PARTITION BY model)
                   THEN 'promoted' WHEN action = 'shadowed' THEN 'shadow' WHEN action IN ('canary', 'retired')
                   THEN action ELSE 'registered' END AS status,
               gate, reason, registered_at, changed_at, share, limits
        FROM (SELECT model, version, arg_min(run, timestamp) AS run, arg_max(action, timestamp) AS action,
                  coalesce(arg_max(action, timestamp)
                      FILTER (action IN ('promoted', 'rolled_back', 'retired')) = 'promoted', false) AS stands,
                  max(timestamp) FILTER (action = 'promoted') AS promoted_at,
                  arg_max_null(gate, timestamp) FILTER (action IN ('promoted', 'canary')) AS gate,
                  arg_max_null(reason, timestamp) AS reason, arg_max_null(share, timestamp) AS share,
                  arg_max_null(limits, timestamp) AS limits,
                  min(timestamp) AS registered_at, max(timestamp) AS changed_at
              FROM releases GROUP BY model, version)""",
    ),
    "jobs_current": (
        "The state of each job now, as its rows say it. A running job whose worker died still reads running here.",
        """SELECT * FROM jobs
        QUALIFY row_number() OVER (PARTITION BY job ORDER BY attempt DESC, CASE state WHEN 'waiting' THEN 0
            WHEN 'running' THEN 1 ELSE 2 END DESC, changed_at DESC, event_id DESC) = 1""",
    ),
    # Images come first and predictions last, in left joins only: for one image, DuckDB starts from its few rows; for
    # one prediction, it starts from that row and reads the narrow columns of slice_members once.
    "lineage": (
        (
            "From an image and its label over the slices that hold them to the runs that used the slices, the "
            "model versions of these runs, and their predictions. `use` is what the run used the slice for. Null:"
            " the chain ends here; a row without image: the slice stores no members, or the run has no slice."
        ),
        """WITH uses AS (
            SELECT id AS run, unnest(CASE WHEN len(from_json(data->'slices', '[{"id":"VARCHAR","use":"VARCHAR"}]')) > 0
                THEN from_json(data->'slices', '[{"id":"VARCHAR","use":"VARCHAR"}]') ELSE [NULL] END) AS entry
            FROM runs),
        used AS (SELECT run, entry.id AS slice, entry.use AS use FROM uses),
        chain AS (
            SELECT m.image_id, m.label_events, m.id AS slice, u.run, u.use
            FROM slice_members m LEFT JOIN used u ON u.slice = m.id
            UNION ALL
            SELECT NULL, NULL, slice, run, use FROM used
            WHERE slice IS NULL
                OR slice NOT IN (SELECT id FROM slices WHERE deleted_at IS NULL AND NOT coalesce(live, false))),
        predicted AS (
            SELECT c.*, v.model, v.version, p.prediction_id
            FROM chain c LEFT JOIN models v ON v.run = c.run
            LEFT JOIN samples p ON p.model = v.model AND p.model_version = v.version::VARCHAR),
        stated AS (
            SELECT * EXCLUDE label_events,
                   unnest(CASE WHEN len(label_events) > 0 THEN label_events ELSE [NULL] END) AS label_event
            FROM predicted)
        SELECT s.image_id, s.label_event, l.task, l.label, s.slice, s.use, s.run, s.model, s.version, s.prediction_id
        FROM stated s LEFT JOIN labels l ON l.event_id = s.label_event AND l.image_id = s.image_id""",
    ),
}


def hint(message: str) -> str:
    """DuckDB's message about an unknown name, with the name that was meant if it is a former or another one."""
    column = re.search(r'column "(\w+)" not found', message)
    if column and column[1].lower() in _TRUE_LABEL:
        return f"there is no column {column[1]}; in filters and in view samples_reviewed the true label is true_label"
    name = re.match(r"Catalog Error: Table with name (\S+) does not exist!", message)
    new = RENAMED.get(name[1].lower()) if name else None
    return f"view {name[1]} is named {new} now, and table predictions samples" if name and new else message


def statements(tables: Iterable[str]) -> list[str]:
    """SQL that creates every view that reads only these tables."""
    available, created = {*tables}, []
    for name, (_, text) in VIEWS.items():  # a view comes after those it reads
        if reads(text) <= available:
            available.add(name)
            created.append(f"CREATE VIEW {name} AS {text}")
    return created


def columns(view: str, promoted: Mapping[str, pa.DataType]) -> list[tuple[str, str]]:
    """A view's columns with their DuckDB types. `promoted`: the metadata columns of this lake's predictions."""
    import duckdb
    import pyarrow as pa

    with duckdb.connect() as connection:
        samples = [(c.name, c.type) for c in schema.SAMPLES.columns if isinstance(c.type, pa.DataType)]
        create_empty(connection, pa.schema([*samples, *promoted.items()]))
        return [(name, type_) for name, type_, *_ in connection.sql(f"DESCRIBE {view}").fetchall()]


def create_empty(connection: duckdb.DuckDBPyConnection, samples: pa.Schema) -> None:
    """Creates every table without rows, samples with these columns, and every view."""
    import pyarrow as pa

    for table in schema.TABLES.values():
        own = pa.schema([(c.name, c.type) for c in table.columns if isinstance(c.type, pa.DataType)])
        connection.register(table.name, (samples if table is schema.SAMPLES else own).empty_table())
    for statement in statements(schema.TABLES):
        connection.execute(statement)


def reads(text: str) -> set[str]:
    """The tables and views whose names occur in a query's text: all that it reads, perhaps more."""
    return {word for word in re.findall(r"\w+", text.lower()) if word in schema.TABLES or word in VIEWS}
