"""Summarises predictions, labels and reviews of groups of images; suggests a name for each.

A prediction is right or wrong by the image's current classification label, else by the newest review of it (correct or
incorrect). This module knows no vectors.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lake.sql.connections import connect

if TYPE_CHECKING:
    from lake.storage.store import Lake

MAX_ERRORS = 6
# A value names a group if most of its images have it, and more often than all images by this factor.
NAMING_SHARE = 0.6
NAMING_LIFT = 1.5
MIN_FOR_NAMING = 3
# A metadata column with more values than this describes single images, not kinds of images.
MAX_VALUES = 200


@dataclass(frozen=True)
class ClusterSummary:
    """Facts of one group; the columns of `clusters` with the same names.

    `answers`: predictions; `known`: those that are right or wrong; `wrong`; `confidence`: their mean. `errors`:
    image_ids of the most confident errors, the most confident first; `labels`: predictions by class, the most frequent
    first; `values`: (kind, value) -> share of the predictions (for kind "true": of the labelled images) that have it.
    """

    answers: int = 0
    known: int = 0
    wrong: int = 0
    confidence: float | None = None
    first_at: dt.datetime | None = None
    last_at: dt.datetime | None = None
    errors: list[str] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    values: dict[tuple[str, str], float] = field(default_factory=dict, repr=False)


_EVALUATED = """
CREATE OR REPLACE TEMP TABLE _evaluated AS
WITH verdicts AS (
    SELECT prediction_id, arg_max(verdict = 'correct', (timestamp, event_id)) AS fits
    FROM reviews_current WHERE verdict IN ('correct', 'incorrect') GROUP BY prediction_id
)
SELECT g.number, a.*, coalesce(a.correct, v.fits) AS fits
FROM predictions_labelled a JOIN _groups g USING (image_id) LEFT JOIN verdicts v USING (prediction_id)
"""


def summarise(lake: Lake, names: Sequence[str], groups: np.ndarray, count: int) -> list[ClusterSummary]:
    """Summaries of each of `count` groups, then of all images together.

    `groups[i]` is the number of the group that the image `names[i]` is in.
    """
    image_id = pa.array(names, pa.string())
    numbers = [pa.array(groups, pa.int64()), pa.repeat(pa.scalar(count, pa.int64()), len(names))]
    members = pa.table({"image_id": pa.chunked_array([image_id, image_id]), "number": pa.chunked_array(numbers)})
    promoted = [name for name, kind in lake.promoted().items() if pa.types.is_string(kind) or pa.types.is_boolean(kind)]
    extra = "".join(f', a."{name}"' for name in promoted)
    sql = _EVALUATED.replace("a.*,", f"a.image_id, a.label, a.true_label, a.confidence, a.timestamp{extra},")
    with connect(lake, sql) as connection:
        connection.register("_groups", members)
        connection.execute(sql)
        figures = connection.sql(
            "SELECT number, count(*), count(fits), count_if(NOT fits), avg(confidence), min(timestamp), max(timestamp) "
            "FROM _evaluated GROUP BY number"
        ).fetchall()
        errors = connection.sql(
            "WITH wrong AS (SELECT number, image_id, max(confidence) AS c FROM _evaluated WHERE NOT fits GROUP BY ALL) "
            "SELECT number, image_id FROM wrong QUALIFY row_number() OVER (PARTITION BY number ORDER BY c DESC NULLS "
            f"LAST, image_id) <= {MAX_ERRORS} ORDER BY number, c DESC NULLS LAST, image_id"
        ).fetchall()
        labels = connection.sql(
            "SELECT number, label, count(*) AS n FROM _evaluated WHERE label IS NOT NULL GROUP BY ALL "
            "ORDER BY number, n DESC, label"
        ).fetchall()
        kinds = {"predicted": "label", "true": "true_label"} | {name: f'"{name}"' for name in promoted}
        values = {
            kind: connection.sql(
                f"SELECT number, CAST({column} AS VARCHAR) AS value, count(*) FROM _evaluated "
                f"WHERE {column} IS NOT NULL GROUP BY ALL ORDER BY ALL"
            ).fetchall()
            for kind, column in kinds.items()
        }
        connection.execute("DROP TABLE _evaluated")
        connection.unregister("_groups")
    return _summaries(count + 1, figures, errors, labels, values)


def _summaries(count: int, figures: Any, errors: Any, labels: Any, values: dict[str, Any]) -> list[ClusterSummary]:
    facts: list[dict[str, Any]] = [{"errors": [], "labels": [], "values": {}} for _ in range(count)]
    for number, answers, known, wrong, confidence, first, last in figures:
        counts = {"answers": answers, "known": known, "wrong": wrong, "first_at": first, "last_at": last}
        finite = confidence is not None and math.isfinite(confidence)
        facts[number] |= counts | {"confidence": confidence if finite else None}
    for number, name in errors:
        facts[number]["errors"].append(name)
    for number, label, n in labels:
        facts[number]["labels"].append({"label": label, "n": n})
    for kind, rows in values.items():
        if len({value for _, value, _ in rows}) > MAX_VALUES:
            continue
        totals: dict[int, int] = {}
        for number, _, n in rows:
            totals[number] = totals.get(number, 0) + n
        for number, value, n in rows:
            if totals[number] >= MIN_FOR_NAMING:
                facts[number]["values"][kind, value] = n / totals[number]
    return [ClusterSummary(**fields) for fields in facts]


def suggest_name(group: ClusterSummary, all_images: ClusterSummary) -> str | None:
    """A name from at most two values that most of a group have and all images have much less; None if there is none.

    A true class is named alone, a predicted class as well if no true class is known. Any other value is named with its
    kind: "car, predicted ship", "car, site B".
    """
    candidates: list[tuple[float, str, str]] = []
    for (kind, value), share in group.values.items():
        overall = all_images.values.get((kind, value), 0.0)
        if share >= NAMING_SHARE and share >= NAMING_LIFT * overall:
            candidates.append((share * math.log(share / overall) if overall else share, kind, value))
    candidates.sort(key=lambda candidate: (-candidate[0], candidate[1] != "true", candidate[1], candidate[2]))
    parts: list[str] = []
    values: set[str] = set()
    for _, kind, value in candidates:
        if value in values or len(parts) == 2:
            continue
        values.add(value)
        alone = kind == "true" or (kind == "predicted" and not any(k == "true" for k, _ in group.values))
        parts.append(value if alone else f"{kind} {value}")
    parts.sort(key=lambda text: text.startswith("predicted "))
    return ", ".join(parts) or None
