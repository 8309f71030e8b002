"""What the lake's answers, labels and verdicts say of groups of images, and a name they suggest.

Right or wrong is what an image's current classification label says of an answer, else the newest verdict on it
(correct or incorrect). It knows no vectors.
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

ERRORS = 6
# A value names a group that has it in most of its images, and more often than its surroundings by this factor.
NAMING_SHARE = 0.6
NAMING_LIFT = 1.5
NAMING_FEWEST = 3
# A metadata column with more values than this describes single images, not kinds of them.
VALUES_MOST = 200


@dataclass(frozen=True)
class Contents:
    """Of one group; the columns of `clusters` of the same names.

    `errors`: image_ids of the most confident wrong answers, the surest first; `labels`: answers by class, the commonest
    first; `values`: (kind, value) -> share of the answers (of kind "true": of the labelled images) that have it.
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


_JUDGED = """
CREATE OR REPLACE TEMP TABLE _judged AS
WITH verdicts AS (
    SELECT prediction_id, arg_max(verdict = 'correct', (timestamp, event_id)) AS fits
    FROM reviews_current WHERE verdict IN ('correct', 'incorrect') GROUP BY prediction_id
)
SELECT g.place, a.*, coalesce(a.correct, v.fits) AS fits
FROM answers_labelled a JOIN _groups g USING (image_id) LEFT JOIN verdicts v USING (prediction_id)
"""


def of(lake: Lake, names: Sequence[str], places: np.ndarray, count: int) -> list[Contents]:
    """Of each of `count` groups, then of all of them together; `places[i]` says which the image `names[i]` is in."""
    image_id = pa.array(names, pa.string())
    both = [pa.array(places, pa.int64()), pa.repeat(pa.scalar(count, pa.int64()), len(names))]
    groups = pa.table({"image_id": pa.chunked_array([image_id, image_id]), "place": pa.chunked_array(both)})
    promoted = [name for name, kind in lake.promoted().items() if pa.types.is_string(kind) or pa.types.is_boolean(kind)]
    extra = "".join(f', a."{name}"' for name in promoted)
    sql = _JUDGED.replace("a.*,", f"a.image_id, a.label, a.true_label, a.confidence, a.timestamp{extra},")
    with connect(lake, sql) as connection:
        connection.register("_groups", groups)
        connection.execute(sql)
        figures = connection.sql(
            "SELECT place, count(*), count(fits), count_if(NOT fits), avg(confidence), min(timestamp), max(timestamp) "
            "FROM _judged GROUP BY place"
        ).fetchall()
        errors = connection.sql(
            "WITH wrong AS (SELECT place, image_id, max(confidence) AS c FROM _judged WHERE NOT fits GROUP BY ALL) "
            "SELECT place, image_id FROM wrong QUALIFY row_number() OVER (PARTITION BY place ORDER BY c DESC NULLS "
            f"LAST, image_id) <= {ERRORS} ORDER BY place, c DESC NULLS LAST, image_id"
        ).fetchall()
        labels = connection.sql(
            "SELECT place, label, count(*) AS n FROM _judged WHERE label IS NOT NULL GROUP BY ALL "
            "ORDER BY place, n DESC, label"
        ).fetchall()
        kinds = {"answered": "label", "true": "true_label"} | {name: f'"{name}"' for name in promoted}
        values = {
            kind: connection.sql(
                f"SELECT place, CAST({column} AS VARCHAR) AS value, count(*) FROM _judged WHERE {column} IS NOT NULL "
                "GROUP BY ALL ORDER BY ALL"
            ).fetchall()
            for kind, column in kinds.items()
        }
        connection.execute("DROP TABLE _judged")
        connection.unregister("_groups")
    return _gathered(count + 1, figures, errors, labels, values)


def _gathered(count: int, figures: Any, errors: Any, labels: Any, values: dict[str, Any]) -> list[Contents]:
    facts: list[dict[str, Any]] = [{"errors": [], "labels": [], "values": {}} for _ in range(count)]
    for place, answers, known, wrong, confidence, first, last in figures:
        known_facts = {"answers": answers, "known": known, "wrong": wrong, "first_at": first, "last_at": last}
        finite = confidence is not None and math.isfinite(confidence)
        facts[place] |= known_facts | {"confidence": confidence if finite else None}
    for place, name in errors:
        facts[place]["errors"].append(name)
    for place, label, n in labels:
        facts[place]["labels"].append({"label": label, "n": n})
    for kind, rows in values.items():
        if len({value for _, value, _ in rows}) > VALUES_MOST:
            continue
        totals: dict[int, int] = {}
        for place, _, n in rows:
            totals[place] = totals.get(place, 0) + n
        for place, value, n in rows:
            if totals[place] >= NAMING_FEWEST:
                facts[place]["values"][kind, value] = n / totals[place]
    return [Contents(**one) for one in facts]


def suggest(group: Contents, around: Contents) -> str | None:
    """A name from at most two values that most of a group have and its surroundings much less; None when none does.

    A true class goes by its name, an answered one as well where no true one is known, anything else with what it is:
    "car, answered ship", "car, site B".
    """
    telling: list[tuple[float, str, str]] = []
    for (kind, value), share in group.values.items():
        usual = around.values.get((kind, value), 0.0)
        if share >= NAMING_SHARE and share >= NAMING_LIFT * usual:
            telling.append((share * math.log(share / usual) if usual else share, kind, value))
    telling.sort(key=lambda one: (-one[0], one[1] != "true", one[1], one[2]))
    said: list[str] = []
    values: set[str] = set()
    for _, kind, value in telling:
        if value in values or len(said) == 2:
            continue
        values.add(value)
        plain = kind == "true" or (kind == "answered" and not any(k == "true" for k, _ in group.values))
        said.append(value if plain else f"answered {value}" if kind == "answered" else f"{kind} {value}")
    said.sort(key=lambda text: text.startswith("answered "))
    return ", ".join(said) or None
