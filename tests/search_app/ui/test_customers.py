"""What customers report, on the Overview and in Search; and images that cannot be shown. Counted by hand."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pytest

pytest.importorskip("streamlit")

from lake.open_lake import OpenLake
from lake.storage import schema, store
from search_app.ui import session
from search_app.ui.components import findings
from search_app.ui.data import queries
from tests.conftest import MakeLake
from tests.lake.prediction_rows import add, image, label

MONDAY = dt.datetime(2026, 9, 7, 12, tzinfo=dt.UTC)


def _forget_cached() -> None:
    for cached in (queries._rows, queries._reviews, queries._predictions, queries.status):
        cached.clear()


@pytest.fixture
def bound(make_lake: MakeLake) -> Iterator[OpenLake]:
    """Four predictions on line a, two on line b; the images of predictions 1 and 5 cannot be shown."""
    lk = make_lake(columns={"line": "string"})
    rows = [{"label": f"kind {n}", "confidence": n / 10, "line": "a" if n < 4 else "b"} for n in range(6)]
    rows[1]["image_status"] = "truncated"
    rows[5]["image_status"] = "its bytes were not kept"
    add(lk, rows)
    session.bind(lk)
    _forget_cached()
    yield lk
    _forget_cached()


def say(lake: OpenLake, number: int, verdict: str, hours: float = 0, **more: str) -> None:
    """Adds a customer's verdict on prediction `number`, `hours` after Monday noon."""
    row = {
        "event_id": str(uuid.uuid4()),
        "prediction_id": str(uuid.UUID(int=number)),
        "image_id": image(number),
        "timestamp": MONDAY + dt.timedelta(hours=hours),
        "origin": "customer",
        "verdict": verdict,
        "ingested_at": store.now(),
    }
    lake.insert("reviews", pa.Table.from_pylist([row | more], schema=schema.REVIEWS.arrow()))


def test_without_verdicts_the_block_is_empty(bound: OpenLake) -> None:
    assert queries.verdicts(None) == {}
    assert queries.complaints(None, 3) == []
    assert findings.customers({}, []) is None


def test_the_latest_verdict_on_a_prediction_counts(bound: OpenLake) -> None:
    say(bound, 0, "incorrect", 1)
    say(bound, 0, "correct", 2)
    say(bound, 1, "correct", 1)
    say(bound, 1, "incorrect", 2, comment="sorry, it is broken after all")
    say(bound, 2, "unsure")
    say(bound, 3, "incorrect", origin="somebody else")
    assert queries.verdicts(None) == {"correct": 1, "incorrect": 1, "unsure": 1}
    assert [row["comment"] for row in queries.complaints(None, 3)] == ["sorry, it is broken after all"]


def test_complaints_are_listed_latest_first_with_prediction_and_label(bound: OpenLake) -> None:
    for number, hours in ((2, 3), (4, 9), (0, 5)):
        say(bound, number, "incorrect", hours, ticket=f"T-{number}")
    label(bound, (image(4), "sound", MONDAY))
    complaints = queries.complaints(None, 2)
    assert [(row["ticket"], row["label"], row["confidence"], row["truth"]) for row in complaints] == [
        ("T-4", "kind 4", pytest.approx(0.4), "sound"),
        ("T-0", "kind 0", 0.0, None),
    ]
    assert [row["label"] for row in queries.sample(None, "complaints", 1, 10)] == ["kind 4", "kind 0", "kind 2"]


def test_the_filter_of_the_page_applies_to_complaints(bound: OpenLake) -> None:
    for number in (1, 4, 5):
        say(bound, number, "incorrect", number)
    assert queries.verdicts("line = 'b'") == {"incorrect": 2}
    assert [row["label"] for row in queries.complaints("line = 'a'", 3)] == ["kind 1"]
    assert [row["label"] for row in queries.sample("line = 'b'", "complaints", 1, 10)] == ["kind 5", "kind 4"]


def test_an_image_complained_about_twice_is_shown_once(bound: OpenLake) -> None:
    (again,) = add(bound, [{"label": "second thought", "image_id": image(0), "prediction_id": str(uuid.UUID(int=99))}])
    assert again == str(uuid.UUID(int=99))
    say(bound, 0, "incorrect", 1)
    say(bound, 99, "incorrect", 2, image_id=image(0))
    assert queries.verdicts(None) == {"incorrect": 2}
    assert [row["label"] for row in queries.sample(None, "complaints", 1, 10)] == ["second thought"]


def test_the_card_lists_the_worst_first_and_links_to_the_image_and_to_similar_ones(bound: OpenLake) -> None:
    say(bound, 3, "incorrect", 1, comment="it works", ticket="T-3")
    for number in (0, 1, 2):
        say(bound, number, "correct")
    say(bound, 4, "unsure")
    block = findings.customers(queries.verdicts(None), queries.complaints(None, 3))
    assert block is not None
    assert block["note"].startswith("Verdicts: 1 incorrect, 1 unsure, 3 correct.")
    (card,) = block["voices"]
    assert (card["link"]["text"], card["verdict"], card["facts"]) == (
        "Predicted “kind 3”", "incorrect", ["confidence 0.30", "T-3"],
    )  # fmt: skip
    assert (card["comment"], card["timestamp"]) == ("it works", "2026-09-07T13:00:00+00:00")
    assert card["link"]["params"] == {"show": "complaints", "open": image(3)[:16]}
    assert card["similar"]["params"]["like"] == image(3)
    assert block["links"] == []


def test_a_link_leads_to_all_complaints_if_there_are_more_than_cards(bound: OpenLake) -> None:
    for number in range(6):
        say(bound, number, "incorrect", number)
    block = findings.customers(queries.verdicts(None), queries.complaints(None, 3))
    assert block is not None
    assert [entry["link"]["text"] for entry in block["voices"]] == [f"Predicted “kind {n}”" for n in (5, 4, 3)]
    assert [(entry["text"], entry["params"]) for entry in block["links"]] == [
        ("All 6 complaints", {"show": "complaints"})
    ]


def test_images_that_cannot_be_shown_are_counted_by_their_reason(bound: OpenLake) -> None:
    assert queries.without_thumbnail(None) == [
        {"reason": "its bytes were not kept", "images": 1},
        {"reason": "truncated", "images": 1},
    ]
    assert [row["reason"] for row in queries.without_thumbnail("line = 'a'")] == ["truncated"]
    assert queries.without_thumbnail("label = 'kind 0'") == []
    assert findings.without_thumbnail([]) is None

    block = findings.without_thumbnail(queries.without_thumbnail(None))
    assert block is not None
    ((item,),) = [block["items"]]
    assert item["link"]["text"] == "2 images without a thumbnail"
    assert item["why"] == "1 its bytes were not kept, 1 truncated"
    where = item["link"]["params"]["where"]
    assert queries.rows(f"SELECT count(*) AS n FROM samples WHERE {where}") == [{"n": 2}]


def test_many_reasons_are_summed_up() -> None:
    block = findings.without_thumbnail([{"reason": f"reason {n}", "images": 9 - n} for n in range(6)])
    assert block is not None
    assert block["items"][0]["why"].endswith("6 reason 3, and 2 other reasons")


def test_the_state_of_a_page_changes_with_answers_and_verdicts(bound: OpenLake) -> None:
    seen = [queries.news(queries.stamp())]
    say(bound, 0, "unsure")
    seen.append(queries.news(queries.stamp()))
    add(bound, [{"label": "another"}])
    seen.append(queries.news(queries.stamp()))
    label(bound, (image(0), "sound", MONDAY))  # labels do not arrive by themselves
    assert len(set(seen)) == 3
    assert queries.news(queries.stamp()) == seen[-1]
