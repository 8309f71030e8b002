"""Odd JSON in events: every accepted event is drained, and SQL and HTTP return what was sent.

NaN, 1e999, duplicate keys, lone surrogates, NUL, numbers of thousands of digits, moments before and after all others.
What a value becomes is said in `lake/prediction_logs/prediction_rows.py`: not-a-number and infinity are null in
metadata and nothing elsewhere, half a surrogate pair is refused, a number given for a text is that number as text.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from lake.open_lake import OpenLake
from lake.prediction_logs import prediction_rows, texts
from tests.conftest import Say
from tests.search_app.api_client import NDJSON, ApiClient, api_client, named, picture

# What Hypothesis reports for texts of thousands of digits.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
IMAGE = picture(1)


class Number(str):
    """A number as it stands in the text."""


NUMBERS = [
    Number(text) for text in (
        "0", "-0", "-0.0", "1", "0.5", "1.0", "1e0", "1E400", "-1e999", "1e-999", "5e-324", "1.7976931348623157e308",
        "0.1", "NaN", "Infinity", "-Infinity", "9007199254740993", "-9223372036854775808", "9223372036854775807",
        "9223372036854775808", "18446744073709551616", "9" * 4_000, "9" * 4_301, "0." + "3" * 5_000,
        "1700000000", "1700000000.123456", "1700000000123", "1700000000123456789", "-62135596800", "-62135596801",
        "253402300799999", "253402300800000", "99999999999", "100000000000", "1e11", "-1e17",
    )
]  # fmt: skip
WORDS = [
    "a", "", " ", "\0", "a\0b", "\ud800", "x\udc00y", "\udc00\ud800", "\ud83d\ude00", "\u2028", "\ufeff", "\uffff",
    "\x7f\x85", "\u202e", "e\u0301", "null", "NaN", "nan", "inf", "1e999", "-0", "0.5", "1_0", "0x10", "٣", "²", " 7 ",
    "true", "yes", "{}", "[]", '{"a": NaN}', "[1, 2", "'; --", "a" * 9_000, "0" * 4_500 + "1", "9" * 5_000,
    "0001-01-01", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-14:00",
    "10000-01-01", "2026-02-30", "2026-W10-1", "2026-11-22T10:00", "20261122T100000Z", "2026-11-22T10:00:00.123456789Z",
    "2026-11-22T24:00:00", "2026-11-22T10:00:60Z", "1700000000", "-1", "١٧٠٠٠٠٠٠٠٠",
]  # fmt: skip

words = st.sampled_from(WORDS) | st.text(max_size=6)
sound_words = words.filter(lambda text: text.isascii() or not re.search("[\ud800-\udfff]", text))
numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats()
single = st.one_of(words, numbers, st.booleans(), st.none())
# A list of pairs is an object, so that a key can come twice.
values = st.recursive(
    single, lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(words, inner), max_size=3), max_leaves=6
)
deep = st.integers(1, 200).map(lambda levels: Number("[" * levels + "1" + "]" * levels))
FIELDS = ("model", "label", "model_version", "task", "source", "confidence", "latency_ms", "timestamp")
PROMOTED = ("count", "share", "shift", "broken", "seen_at")
fractions = st.floats(0, 1)
corners = st.lists(st.floats(0, 1e6) | st.integers(0, 10**6), min_size=4, max_size=4)
good: dict[str, st.SearchStrategy[Any]] = {
    "label": words, "model_version": words, "task": st.sampled_from(prediction_rows.TASKS), "source": words,
    "shift": words,
    "confidence": fractions, "share": st.floats(allow_nan=False, allow_infinity=False), "broken": st.booleans(),
    "latency_ms": st.floats(0, 1e300), "count": st.integers(-(2**63), 2**63 - 1),
    "timestamp": st.floats(-6e10, 1e14) | st.datetimes().map(str), "seen_at": st.datetimes().map(dt.datetime.isoformat),
    "scores": st.lists(st.tuples(words, fractions), max_size=4),
    "boxes": st.lists(st.fixed_dictionaries({"label": words, "score": fractions, "bbox": corners}), max_size=2),
    "masks": st.just([{"size": [2, 3], "counts": [1, 5], "label": "\0", "score": 0.5}]),
    "metadata": st.dictionaries(words, values, max_size=3),
}  # fmt: skip
odd = {name: values for name in ("scores", "boxes", "masks", "metadata")} | dict.fromkeys((*FIELDS, *PROMOTED), single)
events = st.fixed_dictionaries(
    {"model": sound_words.filter(bool), "label": sound_words.filter(bool)},
    optional={name: st.one_of(good[name], good[name], good[name], odd[name]) for name in good if name != "label"}
    | {"x1": values, "x2": values, "x3": deep.filter(lambda text: len(text) < 150)},
)  # fmt: skip


def text_of(value: Any, ascii: bool) -> str:
    """The value as JSON, as loosely as JSON is written."""
    match value:
        case Number():
            return value
        case dict():
            return text_of(list(value.items()), ascii)
        case [tuple(), *_]:
            inner = ",".join(f"{json.dumps(k, ensure_ascii=ascii)}:{text_of(v, ascii)}" for k, v in value)
            return "{" + inner + "}"
        case list():
            return "[" + ",".join(text_of(item, ascii) for item in value) + "]"
        case _:
            return json.dumps(value, ensure_ascii=ascii)


def seconds_of(number: float) -> float | None:
    """Seconds since 1970; None for digits that may be a calendar day."""
    if number == int(number) and len(str(int(number))) in (8, 10, 12, 14):
        return None
    return number / next(
        unit for limit, unit in ((1e11, 1), (1e14, 1e3), (1e17, 1e6), (1e20, 1e9)) if abs(number) < limit
    )


def missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def plain(value: Any) -> Any:
    """The value as it is stored in metadata."""
    match value:
        case dict():
            return {k: plain(v) for k, v in value.items()}
        case list():
            return [plain(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
    return value


def check(event: dict[str, Any], row: dict[str, Any]) -> None:
    """Compares the row of predictions with the event."""
    for name in ("model", "model_version", "label", "task", "source"):
        if not missing(event.get(name)):
            written = str(event[name])
            assert row[name] == (texts.class_name(name, written) if name == "label" else written), name
    for name in ("confidence", "latency_ms", "share"):
        if not missing(event.get(name)):
            number = float(event[name])
            assert row[name] == (min(1, max(0, number)) if name == "confidence" else number), name
            assert math.copysign(1, row[name]) == 1 or row[name] < 0, name  # no minus zero
    if not missing(event.get("count")):
        assert row["count"] == (event["count"] if isinstance(event["count"], int) else int(float(event["count"])))
    if not missing(event.get("shift")):
        assert row["shift"] == str(event["shift"])
    for name in ("timestamp", "seen_at"):
        value = event.get(name)
        if isinstance(value, int | float) and not missing(value):
            seconds, epoch = seconds_of(value), dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
            assert seconds is None or abs((row[name] - epoch).total_seconds() - seconds) < 1e-3, name
    rest = {k: v for k, v in event.items() if k in ("x1", "x2", "x3") and not missing(v)}
    extra = {} if missing(event.get("metadata")) else event["metadata"]
    extra = json.loads(extra) if isinstance(extra, str) else extra
    assert json.loads(row["metadata"] or "{}") == plain(extra | rest)


class Counted:
    """Events posted, the statuses they got, and those that wait to be checked."""

    def __init__(self, service: ApiClient) -> None:
        self.service = service
        self.statuses: Counter[int] = Counter()
        self.waiting: dict[str, dict[str, Any]] = {}
        self.read = 0

    def send(self, texts: list[bytes]) -> None:
        """Posts a batch and counts the statuses of its items."""
        answer = self.service.client.post("/v1/predictions/batch", content=b"\n".join(texts), headers=NDJSON)
        assert answer.status_code == 200, answer.text
        for text, item in zip(texts, answer.json()["items"], strict=True):
            self.statuses[item["code"]] += 1
            if item["code"] == 201:
                self.waiting[item["prediction_id"]] = json.loads(text)
            else:
                assert item["code"] == 422, (text[:300], item)
                assert item["detail"]
                assert item["reason"] in ("invalid", "not_json", "too_complex")

    def look(self) -> None:
        """Drains, and reads everything back: by SQL, by id, and with its image."""
        before = {name: self.service.prediction(name).json() for name in list(self.waiting)[:20]}
        self.service.drain()
        rows = {row["prediction_id"]: row for row in self.service.lake.sql("SELECT * FROM samples").to_pylist()}
        for name, event in self.waiting.items():
            check(event, rows[name])
        for name, waiting in before.items():
            answer = self.service.prediction(name)
            assert answer.status_code == 200
            changing = ("state", "ingested_at")
            stored = {k: v for k, v in answer.json().items() if k not in changing}
            assert stored == {k: v for k, v in waiting.items() if k not in changing}
        assert self.service.client.get(f"/v1/records/{named(IMAGE)}").status_code == 200
        self.read += len(self.waiting)
        self.waiting.clear()


@pytest.fixture
def counted(lake_of_columns: OpenLake, tmp_path: Path) -> Iterator[Counted]:
    with api_client(lake_of_columns, tmp_path / "spool") as service:
        assert service.upload(IMAGE).status_code == 201
        yield Counted(service)


def _run(counted: Counted, examples: int, say: Say) -> None:
    texts: list[bytes] = []

    def look() -> None:
        if texts:
            counted.send(texts)
            counted.look()
            texts.clear()

    # No shrinking: a failure names its event, and a smaller example would need a drain of its own.
    @settings(max_examples=examples, phases=[Phase.generate])
    @given(events, st.booleans())
    def collect(event: dict[str, Any], ascii: bool) -> None:
        payload = {"image_id": named(IMAGE), **event, "prediction_id": str(uuid.uuid4())}
        texts.append(text_of(payload, ascii).encode("utf-8", "surrogatepass"))
        if len(texts) == 100:
            look()

    collect()
    look()
    answered = f"{counted.statuses.total():,} events, answered {dict(counted.statuses)}"
    say(f"odd JSON: {answered}; {counted.read:,} read back, 0 parked")
    assert counted.read > examples / 5


def test_every_accepted_event_is_read_back_as_it_was_sent(counted: Counted, say: Say) -> None:
    _run(counted, 300, say)


@pytest.mark.soak
def test_every_accepted_event_is_read_back_as_it_was_sent_at_length(counted: Counted, say: Say) -> None:
    _run(counted, 20_000, say)


def test_every_field_accepts_or_refuses_every_odd_value(counted: Counted, say: Say) -> None:
    base = {"image_id": named(IMAGE), "model": "m", "label": "l"}
    for name in (*FIELDS, *PROMOTED, "scores", "boxes", "masks", "metadata", "x1"):
        strange: tuple[Any, ...] = (*WORDS, *NUMBERS, True, False, None, [], {}, [[]], [None], {"a": None}, [1, "2"])
        payloads = [base | {name: value, "prediction_id": str(uuid.uuid4())} for value in strange]
        counted.send([text_of(payload, ascii=True).encode() for payload in payloads])
    counted.look()
    say(f"odd JSON: {counted.statuses.total():,} single values, answered {dict(counted.statuses)}; 0 parked")


def test_the_last_of_two_equal_keys_counts(counted: Counted) -> None:
    twice = b'{"image_id":"%s","model":"m","label":"first","label":"second","x1":1,"x1":2}' % named(IMAGE).encode()
    counted.send([twice])
    counted.look()
    rows = counted.service.lake.sql("SELECT label, metadata FROM samples WHERE model = 'm'").to_pylist()
    assert rows == [{"label": "second", "metadata": '{"x1": 2}'}]
