"""Where it fails: groups of a lake small enough to count by hand, and the sentences about them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("streamlit")

import lake
import lake.ids
from lake.ingest.ingest import ingest
from search_app.ui import session
from search_app.ui.components import charts, findings
from search_app.ui.data import groups, queries
from search_app.ui.data.groups import ErrorConfidence, Group
from tests.search_app.shapes import drawing

COUNT, NEW_FROM = 40, 28


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Forty labelled drawings. On the "new" line all predictions are "circle"; of the 28 others one is wrong."""
    folder = tmp_path_factory.mktemp("lines")
    image_ids, log = [], []
    for seed in range(COUNT):
        data, kind = drawing(seed)
        new = seed >= NEW_FROM
        (folder / "labelled" / kind).mkdir(parents=True, exist_ok=True)
        (folder / "labelled" / kind / f"{seed}.jpg").write_bytes(data)
        log.append(
            {
                "image": f"labelled/{kind}/{seed}.jpg",
                "model": "shapes",
                "model_version": "1",
                "label": "circle" if new else "cross" if seed == 4 else kind,
                "confidence": 0.9 + seed / 1000 if new else 0.51 if seed == 4 else 0.7 + seed / 1000,
                "line_no": "new's" if new else "old",
            }
        )
        image_ids.append(lake.ids.image_id(data))
    (folder / "log.jsonl").write_text("\n".join(json.dumps(row) for row in log))
    opened = lake.create(str(folder / "lake"), columns={"line_no": "string"})
    ingest(opened, folder / "log.jsonl", workers=1)
    ingest(opened, folder / "labelled", "imagefolder", workers=1)
    session.bind(opened)
    queries._rows.clear()
    yield image_ids
    queries._rows.clear()


def _group(kind: groups.Kind, value: str) -> Group:
    return next(group for group in groups.reviewed(None) if (group.kind, group.value) == (kind, value))


def test_rates_of_a_group_count_labelled_predictions_only(ids: list[str]) -> None:
    new = _group("column", "new's")
    assert (new.name, new.title) == ("line_no", "line no new's")
    assert (new.predictions, new.labelled, new.correct) == (12, 12, 4)  # four of the twelve are circles
    assert new.balanced == pytest.approx(1 / 3)
    assert new.baseline == pytest.approx(1 / 3)
    assert (new.predicted, new.predicted_share) == ("circle", 1)
    assert new.confidence == pytest.approx(0.9 + (28 + 39) / 2000)
    assert (new.wrong.value, new.wrong.n) == (8 / 12, 12)
    whole = groups.reviewed(None)[0]
    assert (whole.kind, whole.labelled, whole.correct) == ("all", 40, 31)
    assert _group("model", "shapes 1").labelled == 40
    assert _group("label", "circle").predictions == 22


def test_only_groups_above_the_overall_error_rate_are_shown(ids: list[str]) -> None:
    reviewed = groups.reviewed(None)
    assert [group.value for group in groups.worst(reviewed)] == ["new's"]
    assert groups.worst([group for group in reviewed if group.kind != "all"]) == []
    inside = groups.reviewed("line_no = 'old'")
    assert groups.worst(inside) == []
    assert [group.value for group in groups.by_column(inside)["line_no"]] == ["old"]


def test_the_most_confident_errors_illustrate_a_group(ids: list[str]) -> None:
    everything = groups.reviewed(None)
    faces = groups.most_confident_errors(None, groups.worst(everything))
    assert faces == [[ids[38], ids[37], ids[35]]]  # 39 and 36 are circles
    assert groups.most_confident_errors(None, []) == []


def test_the_sql_of_a_group_selects_its_predictions(ids: list[str]) -> None:
    for group in groups.reviewed(None):
        counted = queries.rows(f"SELECT count(*) AS n FROM predictions WHERE {group.sql()}")
        assert counted[0]["n"] == group.predictions, group.title


def test_the_sentence_says_how_many_errors_low_confidence_finds(ids: list[str]) -> None:
    whole, new = groups.error_confidence(None, [groups.reviewed(None)[0], _group("column", "new's")])
    assert (whole, new) == (ErrorConfidence(9, 1, 8), ErrorConfidence(8, 0, 8))
    sentence = findings.on_confidence(whole, new, "line no new's").replace("\N{NO-BREAK SPACE}", " ")
    assert sentence == (
        "Low confidence does not find the errors of “line no new's”. Of all 9 known errors, 11 % are in the least "
        "confident fifth of the predictions and 89 % have a confidence above 0.9. For the 8 errors of “line no new's”, "
        "these shares are 0 % and 100 %."
    )


def test_the_sentence_on_confidence_follows_from_the_numbers() -> None:
    assert findings.on_confidence(ErrorConfidence(10, 8, 1)).startswith(
        "Low confidence finds most of the errors. Of all 10"
    )
    assert findings.on_confidence(ErrorConfidence(10, 8, 1), ErrorConfidence(4, 0, 1), "x").startswith(
        "Low confidence does not find"
    )
    assert findings.on_confidence(ErrorConfidence(7, 0, 7)) == ""


def test_a_chart_has_a_bar_for_every_day_including_empty_ones(ids: list[str]) -> None:
    import datetime as dt

    days = [
        {"day": dt.date(2026, 9, 1), "predictions": 5, "known": 3, "right": 2},
        {"day": dt.date(2026, 9, 4), "predictions": 1, "known": 0, "right": 0},
    ]
    drawn = charts.volume(days)
    assert [bar["parts"] for bar in drawn["bars"]] == [[2, 1, 2], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert charts.accuracy(days) is None
    long = [{**days[0], "day": dt.date(2026, 1, 1) + dt.timedelta(days=index)} for index in range(200)]
    assert charts.volume(long)["title"] == "Predictions per week"
    assert sum(sum(bar["parts"]) for bar in charts.volume(long)["bars"]) == 1_000
