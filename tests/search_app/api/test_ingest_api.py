"""Taking events in over HTTP: what is stored, what is known, what is refused and why; and who sees it when."""

from __future__ import annotations

import asyncio
import io
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lake.errors import UnreadableImage
from lake.images import decode
from lake.spool.spool import Depth
from search_app.api import bodies
from search_app.api.admission import Admission, IngestLimits
from search_app.api.problems import ClientGone
from search_app.api.routes import batch
from search_app.cli.main import main
from tests.conftest import MakeLake
from tests.hostile import files
from tests.pictures import damaged
from tests.search_app.api_client import (
    ARROW,
    JSON,
    NDJSON,
    ApiClient,
    api_client,
    event,
    in_base64,
    named,
    picture,
    reason,
)

UNKNOWN = str(uuid.UUID(int=7))
ABSENT = "0" * 64


@pytest.fixture
def service(make_lake: MakeLake, tmp_path: Path) -> Iterator[ApiClient]:
    lake = make_lake("door", columns={"camera": "int"})
    with api_client(lake, tmp_path / "spool") as opened:
        yield opened


# One prediction --------------------------------------------------------------------------------------------


def test_a_prediction_with_its_image_is_stored_once_and_known_afterwards(service: ApiClient) -> None:
    fields, image = event(camera=3), picture(1)
    stored = {"prediction_id": fields["prediction_id"], "image_id": named(image), "status": "stored"}
    first = service.predict(fields, image)
    assert (first.status_code, first.json()) == (201, stored)
    for _ in range(2):  # before the drain, and after it
        again = service.predict(fields, image)
        assert (again.status_code, again.json()) == (200, stored | {"status": "known"})
        other = service.predict(fields | {"label": "cracked"}, image)
        assert reason(other) == (422, "contradiction")
        assert reason(service.predict(fields, picture(2))) == (422, "contradiction")
        service.drain()
    assert service.lake.sql("SELECT label, camera FROM samples").to_pylist() == [{"label": "intact", "camera": 3}]


def test_a_prediction_may_name_a_stored_image(service: ApiClient) -> None:
    image = picture(1)
    assert reason(service.predict(event(image_id=named(image)))) == (422, "unknown_image")
    assert service.upload(image).status_code == 201
    assert service.predict(event(image_id=named(image))).status_code == 201
    service.drain()
    assert service.predict(event(image_id=named(image))).status_code == 201
    assert service.drain().predictions == 1


def test_without_an_id_the_server_makes_one_and_nothing_is_a_retry(service: ApiClient) -> None:
    image = picture(1)
    answers = [service.predict({"model": "m", "label": "a"}, image) for _ in range(2)]
    ids = {a.json()["prediction_id"] for a in answers}
    assert [a.status_code for a in answers] == [201, 201]
    assert len(ids) == 2
    assert all(str(uuid.UUID(i)) == i for i in ids)


def test_a_prediction_is_readable_at_once_and_reads_the_same_when_it_is_stored(service: ApiClient) -> None:
    fields = event(
        scores={"intact": 0.75, "cracked": 0.25}, boxes=[{"label": "crack", "bbox": [1, 2, 3, 4]}],
        timestamp="2026-11-20T10:00:00+02:00", latency_ms=12.5, source="line 4", camera=2, shift="night",
    )  # fmt: skip
    service.predict(fields, picture(1))
    waiting = service.prediction(fields["prediction_id"]).json()
    assert waiting["state"] == "waiting"
    service.drain()
    stored = service.prediction(fields["prediction_id"]).json()
    assert stored["state"] == "stored"
    differing = ("state", "ingested_at")
    assert {k: v for k, v in waiting.items() if k not in differing} == {
        k: v for k, v in stored.items() if k not in differing
    }
    assert stored["timestamp"] == "2026-11-20T08:00:00Z"
    assert stored["metadata"] == {"camera": 2, "shift": "night"}
    assert reason(service.prediction(UNKNOWN)) == (404, "unknown_prediction")
    assert reason(service.prediction("1234")) == (422, "bad_id")


def test_an_image_comes_back_as_it_was_sent_before_and_after_the_drain(service: ApiClient) -> None:
    image = picture(5)
    first = service.upload(image)
    assert (first.status_code, first.json()) == (201, {"image_id": named(image), "status": "stored"})
    for _ in range(2):
        assert service.upload(image).json() == {"image_id": named(image), "status": "known"}
        response = service.client.get(f"/v1/images/{named(image)}")
        assert (response.content, response.headers["content-type"]) == (image, "image/png")
        assert response.headers["x-content-type-options"] == "nosniff"
        service.drain()
    assert service.client.get(f"/v1/thumbnails/{named(image)}").headers["content-type"] == "image/jpeg"
    assert service.client.get(f"/v1/records/{named(image)}").json()["format"] == "PNG"


def test_an_event_too_large_for_a_header_has_another_way(service: ApiClient) -> None:
    image, fields = picture(1), event(note="x" * bodies.KEY_CHARACTERS * 50)
    refused = service.predict(fields, image)
    assert reason(refused) == (431, "event_too_large")
    assert "/v1/images" in refused.json()["detail"]
    service.upload(image)
    assert service.predict(fields | {"image_id": named(image)}).status_code == 201


def test_a_body_without_a_length_is_taken_in_chunks_and_cut_off_at_the_limit(service: ApiClient) -> None:
    image, fields = picture(1), event()
    sent = {"Content-Type": "image/png", "Lakeloop-Event": json.dumps(fields)}
    chunks = (image[i : i + 100] for i in range(0, len(image), 100))
    assert service.client.post("/v1/predictions", content=chunks, headers=sent).status_code == 201
    endless = (bytes(1 << 20) for _ in range(40))
    cut = service.client.post("/v1/predictions", content=endless, headers=sent)
    assert reason(cut) == (413, "too_large")
    assert service.api.service.admission.event_bodies.held == 0
    assert service.drain().events == 1


REFUSED: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("/v1/predictions", b"x", {}, 415, "media_type"),
    ("/v1/predictions", b"x", {"Content-Type": "text/plain"}, 415, "media_type"),
    ("/v1/predictions", b"x", {"Content-Type": "multipart/form-data; boundary=a"}, 415, "media_type"),
    ("/v1/predictions", b"", JSON, 422, "not_json"),
    ("/v1/predictions", b"[]", JSON, 422, "not_json"),
    ("/v1/predictions", b"{", JSON, 422, "not_json"),
    ("/v1/predictions", b"\xff\xfe{", JSON, 422, "not_json"),
    ("/v1/predictions", b"{}", JSON, 422, "no_image"),
    ("/v1/predictions", b"{" + b'"a":[],' * 99_999 + b'"b":[]}', JSON, 422, "too_complex"),
    ("/v1/predictions", b'{"a":"' + bytes(5 << 20) + b'"}', JSON, 413, "too_large"),
    ("/v1/predictions", b"x", {"Content-Type": "image/png"}, 422, "no_event"),
    ("/v1/predictions", b"x", {"Content-Type": "image/png", "Lakeloop-Event": "{}"}, 422, "unreadable_image"),
    ("/v1/predictions", b"x", {"Content-Type": "image/png", "Lakeloop-Event": "[1]"}, 422, "not_json"),
    ("/v1/predictions", b"x", {"Content-Type": "image/png", "Lakeloop-Event": "no"}, 422, "not_json"),
    ("/v1/predictions", b"x", JSON | {"Idempotency-Key": ""}, 400, "bad_key"),
    ("/v1/predictions", b"x", JSON | {"Idempotency-Key": "a b"}, 400, "bad_key"),
    ("/v1/predictions", b"x", JSON | {"Idempotency-Key": "k" * 201}, 400, "bad_key"),
    ("/v1/predictions/batch", b"{}", JSON, 415, "media_type"),
    ("/v1/predictions/batch", b"", NDJSON, 422, "empty"),
    ("/v1/predictions/batch", b" \n\r\n\n", NDJSON, 422, "empty"),
    ("/v1/predictions/batch", b"{}\n" * 1_001, NDJSON, 413, "too_many"),
    ("/v1/predictions/batch", b"\n" * (16 << 20), NDJSON, 413, "too_many"),
    ("/v1/predictions/batch", b"", ARROW, 422, "not_arrow"),
    ("/v1/predictions/batch", b"ARROW1\0\0" * 9, ARROW, 422, "not_arrow"),
    ("/v1/images", b"", {"Content-Type": "image/png"}, 422, "unreadable_image"),
    ("/v1/images", b"<svg/>", {"Content-Type": "image/svg+xml"}, 422, "unreadable_image"),
    ("/v1/images", b"x", {"Content-Type": "application/octet-stream"}, 415, "media_type"),
    ("/v1/images", b'{"url":"http://127.0.0.1/"}', JSON, 403, "url_import_off"),
    ("/v1/feedback", b"{}", NDJSON, 415, "media_type"),
    ("/v1/feedback", b"{}", JSON, 422, "invalid"),
    ("/v1/feedback", b'{"prediction_id":"%s"}' % UNKNOWN.encode(), JSON, 404, "unknown_prediction"),
    ("/v1/queries", b"GIF89a", {"Content-Type": "image/gif"}, 422, "unreadable_image"),
    ("/v1/queries", b"x", {"Content-Type": "text/html"}, 415, "media_type"),
    ("/v1/search", b"{}", {"Content-Type": "text/plain"}, 415, "media_type"),
    ("/v1/search", b"{", JSON, 422, "invalid"),
    ("/v1/search", b"[" * 100_000, JSON, 422, "invalid"),
    ("/v1/search", b'{"k":0,"text":"a"}', JSON, 422, "invalid"),
    ("/v1/search", b'{"kay":1}', JSON, 422, "invalid"),
    ("/v1/search", b'{"image_base64":"not base64!"}', JSON, 422, "invalid"),
]  # fmt: skip


def test_a_refused_request_has_a_reason_and_stores_nothing(service: ApiClient) -> None:
    for path, body, headers, status, word in REFUSED:
        response = service.client.post(path, content=body, headers=headers)
        assert (path, body[:40], *reason(response)) == (path, body[:40], status, word)
    assert service.spool.depth().events == 0
    metrics = service.client.get("/metrics").text
    for word in ("media_type", "not_json", "too_large", "unreadable_image", "too_many", "unknown_prediction"):
        assert re.search(rf'lakeloop_rejected_total{{reason="{word}"}} [1-9]', metrics)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"label": None}, "prediction is empty"),
    ({"prediction_id": "7"}, "UUID"),
    ({"prediction_id": ""}, "UUID"),
    ({"prediction_id": True}, "not text"),
    ({"image_id": ABSENT}, "SHA-256"),
    ({"confidence": 1.5}, "between 0 and 1"),
    ({"confidence": True}, "not a number"),
    ({"confidence": float("inf")}, "finite"),
    ({"timestamp": "yesterday"}, "ISO 8601"),
    ({"timestamp": False}, "ISO 8601"),
    ({"timestamp": 1.7e21}, "ISO 8601"),
    ({"confidence": 87}, "it looks like a percentage: divide it by 100"),
    ({"confidence": -2}, "it looks like a logit"),
    ({"task": "ocr"}, "one of classification, detection, segmentation"),
    ({"camera": 2.0**60}, "without its last digits"),
    ({"note": {"by": "\ud800"}}, "half a surrogate pair"),
    ({"source": "\udfff"}, "source has \\udfff, half a surrogate pair"),
    ({"prediction": "dog"}, "'label' and 'prediction' could each be the predicted class"),
    ({"label": None, "klass": "dog"}, "the prediction is empty: pass a label, scores, boxes or masks; these fields"),
    ({"latency_ms": -1}, "must not be negative"),
    ({"timestamp": "10000-01-01"}, "ISO 8601"),
    ({"label": ["a"]}, "label"),
    ({"label": "x" * 10_001}, "at most 10,000"),
    ({"camera": 1.5}, "whole number"),
    ({"camera": 2**63}, "64 bits"),
    ({"camera": "9" * 5_000}, "finite"),
    ({"scores": {"a": 2}}, "between 0 and 1"),
    ({"scores": "cat"}, "JSON"),
    ({"boxes": [{"bbox": [0, 0, -1, 1]}]}, "not negative"),
    ({"boxes": [1]}, "list of objects"),
    ({"masks": "a.png"}, "does not read files"),
    ({"masks": [{"png": "/etc/passwd"}]}, "does not read files"),
    ({"masks": [{"size": [1, 1], "counts": "\x7f"}]}, "character"),
    ({"masks": [{"size": [9, 9], "counts": "0" * ((1 << 20) + 1)}]}, "the limit is 1,048,576"),
    ({"scores": [0] * 100_001}, "the limit is 100,000"),
    ({"masks": [{"size": [True, True], "counts": [1]}]}, "size"),
    ({"metadata": [1]}, "JSON object"),
    ({"latency_ms": "fast"}, "latency_ms"),
]


def test_a_wrong_field_is_named(service: ApiClient) -> None:
    service.upload(picture(1))
    for change, words in WRONG:
        named_image = {"image_id": named(picture(1))} if "image_id" not in change else {}
        refused = service.predict(event(**named_image, **change), picture(1) if "image_id" in change else None)
        assert reason(refused) in ((422, "invalid"), (422, "other_image")), change
        assert words in refused.json()["detail"], change
    assert service.spool.depth().events == 1  # the image


def test_names_are_understood_as_in_a_log(service: ApiClient) -> None:
    named_otherwise = {"prediction_id": UNKNOWN, "model": "m", "Class": 5.0, "conf": "0.5", "ground_truth": "4"}
    assert service.predict(named_otherwise, picture(1)).status_code == 201
    row = service.prediction(UNKNOWN).json()
    assert (row["label"], row["confidence"], row["metadata"]) == ("5", 0.5, {"ground_truth": "4"})


def test_a_probability_a_hair_outside_is_clamped_and_counted(service: ApiClient) -> None:
    one = service.predict(event(confidence=1.0000001192092896, scores={"a": -1e-9}), picture(1))
    assert (one.status_code, one.json()["clamped"]) == (201, 2)
    items = [event(image_id=named(picture(1)), confidence=c) for c in (1.00005, 1, 1.001)]
    several = service.batch(items).json()["items"]
    assert [(item["code"], item.get("clamped")) for item in several] == [(201, 1), (201, None), (422, None)]
    assert service.prediction(items[0]["prediction_id"]).json()["confidence"] == 1
    assert "lakeloop_clamped_total 3.0" in service.client.get("/metrics").text


def test_masks_of_another_size_than_the_image_are_refused_by_every_door(service: ApiClient) -> None:
    image = picture(1)  # 24 x 16

    def masks(height: int, width: int) -> dict[str, Any]:
        return event(masks=[{"label": "a", "size": [height, width], "counts": [height * width]}])

    turned = masks(24, 16)
    refused = service.predict(turned, image)
    assert (refused.status_code, "a mask is 16 x 24, the image is 24 x 16" in refused.text) == (422, True)
    new = in_base64(picture(2))
    both = [masks(24, 16) | {"image_id": named(picture(2))}, event(image_base64=new), turned | {"image_base64": new}]
    assert [item["code"] for item in service.batch(both).json()["items"]] == [422, 201, 422]
    assert service.predict(masks(16, 24), image).status_code == 201
    for _ in range(2):  # waiting in the spool, and in the lake
        assert service.predict(turned | {"image_id": named(image)}).status_code == 422
        assert service.predict(masks(16, 24) | {"image_id": named(image)}).status_code == 201
        service.drain()


def test_null_means_that_the_field_is_missing(service: ApiClient) -> None:
    nulls = dict.fromkeys(("image_id", "confidence", "scores", "boxes", "timestamp", "metadata", "camera", "task"))
    assert service.predict(event(**nulls), picture(1)).status_code == 201


# Batches ---------------------------------------------------------------------------------------------------


def mixed() -> list[tuple[Any, int, str]]:
    """Items of a batch, good and bad in turns: (item, its code, its status or the reason)."""
    first, second, broken = picture(1), picture(2), files.png(50_000, 50_000, 8, 2, b"")
    prediction = event(image_base64=in_base64(first))
    return [
        (prediction, 201, "stored"),
        ("{", 422, "not_json"),
        (event(image_id=named(second)), 201, "stored"),  # it comes later in the same batch
        (event(image_base64="%%%"), 422, "no_image"),
        (event(image_base64=in_base64(second)), 201, "stored"),
        (event(image_base64=in_base64(broken)), 422, "unreadable_image"),
        (prediction, 200, "known"),
        (prediction | {"label": "another"}, 422, "contradiction"),
        (event(image_id=ABSENT), 422, "unknown_image"),
        (event(image_base64=in_base64(first), confidence=7), 422, "invalid"),
        (b"\xff\xfe\xfd", 422, "not_json"),
        (event(), 422, "no_image"),
        (event(image_base64=in_base64(first), prediction_id="x"), 422, "invalid"),
        (event(image={"path": 1}), 422, "no_image"),
        (event(image_base64=in_base64(first), deep=json.loads("[" * 90 + "]" * 90)), 422, "invalid"),
        (event(image_base64=in_base64(first), scores={"\ud800": 2}), 422, "invalid"),
        ("[" * 5_000 + "]" * 5_000, 422, "not_json"),
        (event(image_base64=in_base64(first + bytes(33 << 20))), 413, "too_large"),
        (event(image_base64=in_base64(first)), 201, "stored"),
    ]


def test_one_bad_item_never_harms_the_others(service: ApiClient) -> None:
    wanted = mixed()
    response = service.batch([item for item, _, _ in wanted])
    assert response.status_code == 200
    items = response.json()["items"]
    assert [item["index"] for item in items] == list(range(len(wanted)))
    results = [(item["code"], item.get("reason", item["status"])) for item in items]
    assert results == [(code, word) for _, code, word in wanted]
    assert all(item["detail"] for item in items if item["status"] == "refused")
    assert items[7]["prediction_id"] == items[0]["prediction_id"]
    report = service.drain()
    assert (report.predictions, report.images) == (4, 2)
    stored = service.lake.sql("SELECT prediction_id FROM samples").column("prediction_id").to_pylist()
    assert sorted(stored) == sorted(item["prediction_id"] for item in items if item["code"] == 201)


def test_a_batch_of_arrow_is_taken_row_by_row(service: ApiClient) -> None:
    image = picture(1)
    rows = [
        {
            "prediction_id": str(uuid.UUID(int=n)),
            "model": "m",
            "label": "a",
            "image": image,
            "confidence": n / 4,
            "timestamp": 1_700_000_000_000_000_000 + n * 1_001,
        }
        for n in range(7)
    ]
    rows[2]["image"] = b"no image"
    rows[3] |= {"image": None, "image_id": named(image)}
    table = pa.Table.from_pylist(
        rows,
        pa.schema(
            [("prediction_id", pa.string()), ("model", pa.dictionary(pa.int8(), pa.string())), ("label", pa.string()),
             ("image", pa.binary()), ("confidence", pa.float32()), ("image_id", pa.string()),
             ("timestamp", pa.timestamp("ns"))]
        ),
    )  # fmt: skip
    response = service.client.post("/v1/predictions/batch", content=stream(table), headers=ARROW)
    codes = [(item["code"], item.get("reason")) for item in response.json()["items"]]
    good, bad = (201, None), (422, "invalid")
    assert codes == [good, good, (422, "unreadable_image"), good, good, bad, bad]
    assert service.drain().predictions == 4
    times = service.lake.sql("SELECT timestamp FROM samples ORDER BY prediction_id").column(0).to_pylist()
    assert [time.timestamp() for time in times] == [1_700_000_000.0 + n * 1e-6 for n in (0, 1, 3, 4)]


def stream(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return out.getvalue()


def arrow_streams() -> list[tuple[str, bytes, int]]:
    """(the fault, the stream, the status of the whole response)."""
    text = pa.table({"model": ["m"], "label": ["a"]})
    lies = bytearray(stream(pa.table({"model": ["m" * 50] * 3})))
    lies[-80:-60] = b"\xff" * 20
    return [
        ("cut short", stream(text)[:-20], 422),
        ("offsets that point nowhere", bytes(lies), 422),
        ("more rows than a batch may have", stream(pa.table({"model": ["m"] * 1_001})), 422),
        ("no rows", stream(text.slice(1)), 422),
        ("a billion nulls", stream(pa.table({"n": pa.nulls(1_000_000_000)})), 422),
        ("compressed zeros", stream(pa.table({"image": [bytes(65 << 20)]}), compression="zstd"), 422),
        ("one buffer a thousand times", stream(pa.table({"image": pa.DictionaryArray.from_arrays(
            pa.array([0] * 1_000, pa.int16()), pa.array([bytes(2 << 20)]))})), 422),
        ("a zone that does not exist", stream(pa.table({"ts": pa.array([0], pa.timestamp("us", "Mars/A"))})), 422),
        ("nanoseconds", stream(pa.table({"timestamp": pa.array([1], pa.timestamp("ns"))})), 200),
        ("columns of the same name", stream(pa.table([["a"], ["b"]], names=["model", "model"])), 200),
        ("text for the image", stream(pa.table({"image": ["a.png"]})), 200),
        ("a list for the image", stream(pa.table({"image": [[b"a"]]})), 200),
        ("every other type", stream(pa.table({
            "model": [uuid.uuid4().bytes], "label": [{"a": [1]}], "scores": [{}], "n": [b"\xff"]})), 200),
    ]  # fmt: skip


def test_no_batch_takes_an_event_larger_than_the_limit_of_one(service: ApiClient) -> None:
    """5 MiB in a line of NDJSON, and in a column of Arrow that repeats one value."""
    image = named(picture(1))
    service.client.post("/v1/images", content=picture(1), headers={"Content-Type": "image/png"})
    events = [{"model": "m", "label": "a", "image_id": image, "note": note} for note in ("x" * (5 << 20), "short")]
    body = b"\n".join(json.dumps(event).encode() for event in events)
    lines = service.client.post("/v1/predictions/batch", content=body, headers=NDJSON).json()["items"]
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), [event["note"] for event in events])
    columns = {name: [event[name] for event in events] for name in ("model", "label", "image_id")}
    table = pa.table(columns | {"note": dictionary})
    columns_ = service.client.post("/v1/predictions/batch", content=stream(table), headers=ARROW).json()["items"]
    for items in (lines, columns_):
        assert [item["code"] for item in items] == [413, 201]
        assert "at most 4 MiB" in items[0]["detail"]


def test_the_values_of_a_batch_are_bounded_before_it_is_parsed(service: ApiClient) -> None:
    """57 MiB of small lists in a thousand lines took 1.5 GB and 20 s."""
    service.client.post("/v1/images", content=picture(1), headers={"Content-Type": "image/png"})

    def line(values: int) -> bytes:
        return json.dumps(event(image_id=named(picture(1)), x=[0] * values)).encode()

    assert reason(service.batch([line(600_000)] * 2)) == (413, "too_large")
    items = service.batch([line(1_100_000), line(3)]).json()["items"]
    assert [(item["code"], item.get("reason")) for item in items] == [(422, "too_complex"), (201, None)]
    text = json.dumps(event(image_id=named(picture(1)), note="x" * (4_000_000))).encode()
    assert reason(service.batch([text] * 9)) == (413, "too_large")


def test_arrow_that_unpacks_to_more_than_a_batch_is_refused(service: ApiClient) -> None:
    """A dictionary with one value of a megabyte that every row names: a megabyte to send, 900 in memory."""
    note = pa.DictionaryArray.from_arrays(pa.array([0] * 900, pa.int8()), ["x" * (1 << 20)])
    names = {name: ["a"] * 900 for name in ("model", "label")}
    table = pa.table(names | {"image_id": [named(picture(1))] * 900, "note": note})
    response = service.client.post("/v1/predictions/batch", content=stream(table), headers=ARROW)
    assert reason(response) == (422, "not_arrow")
    assert "64 MiB when it is unpacked" in response.json()["detail"]


def test_no_arrow_stream_harms_the_server(service: ApiClient) -> None:
    for case, body, status in arrow_streams():
        response = service.client.post("/v1/predictions/batch", content=body, headers=ARROW)
        assert (case, response.status_code) == (case, status), response.text[:300]
        if status == 200:
            assert {item["code"] for item in response.json()["items"]} == {422}, case
        else:
            assert reason(response)[1] in ("not_arrow", "empty"), case
    assert service.spool.depth().events == 0
    assert service.predict(event(), picture(1)).status_code == 201


# Feedback --------------------------------------------------------------------------------------------------


def test_a_verdict_becomes_a_review_and_never_a_label(service: ApiClient) -> None:
    fields = event()
    service.predict(fields, picture(1))
    feedback = {"prediction_id": fields["prediction_id"], "verdict": "incorrect", "comment": "a crack", "ticket": "T-7"}
    first = service.feedback(feedback)  # of an answer that is still in the spool
    assert (first.status_code, first.json()["status"]) == (201, "stored")
    again = service.feedback(feedback)
    assert (again.status_code, again.json()) == (200, first.json() | {"status": "known"})
    service.drain()
    assert service.feedback(feedback).json() == again.json()
    later = service.feedback(feedback | {"verdict": "correct", "comment": None})
    assert later.status_code == 201
    service.drain()
    lake = service.lake
    assert lake.sql("SELECT verdict, comment, ticket, origin FROM reviews ORDER BY timestamp").to_pylist() == [
        {"verdict": "incorrect", "comment": "a crack", "ticket": "T-7", "origin": "customer"},
        {"verdict": "correct", "comment": None, "ticket": "T-7", "origin": "customer"},
    ]
    assert lake.sql("SELECT verdict FROM reviews_current").column("verdict").to_pylist() == ["correct"]
    assert lake.dataset("labels").count_rows() == 0
    reviews = service.prediction(fields["prediction_id"]).json()["reviews"]
    assert [r["verdict"] for r in reviews] == ["correct", "incorrect"]


def test_wrong_feedback_has_a_clear_error(service: ApiClient) -> None:
    fields, own = event(), str(uuid.uuid4())
    service.predict(fields, picture(1))
    good = {"prediction_id": fields["prediction_id"], "verdict": "unsure"}
    assert reason(service.feedback(good | {"prediction_id": UNKNOWN})) == (404, "unknown_prediction")
    for change in (
        {"verdict": "wrong"}, {"verdict": None}, {"verdict": ["correct"]}, {"comment": "x" * 10_001}, {"comment": 7},
        {"ticket": "x" * 1_001}, {"label": "cat"}, {"event_id": "7"}, {"timestamp": True}, {"prediction_id": None},
    ):  # fmt: skip
        assert reason(service.feedback(good | change)) == (422, "invalid"), change
    assert service.feedback(good | {"comment": "x" * 10_000, "ticket": "t" * 1_000, "event_id": own}).status_code == 201
    assert reason(service.feedback(good | {"event_id": own})) == (422, "contradiction")
    service.drain()
    assert reason(service.feedback(good | {"event_id": own})) == (422, "contradiction")


# Refusals for now ------------------------------------------------------------------------------------------

FULL: list[tuple[str, Depth, int, int, str]] = [
    ("the disk", Depth(1, 1, None, 0), 0, 507, "disk_full"),
    ("the spool", Depth(1, 1 << 40, None, 0), 1 << 40, 503, "spool_full"),
    ("its age", Depth(1, 1, 1.0, 0), 1 << 40, 503, "spool_old"),
]


@pytest.mark.parametrize(
    ("limit", "depth", "free", "status", "word"), FULL, ids=lambda v: v if isinstance(v, str) else ""
)
def test_when_the_spool_is_full_writes_are_refused_and_reads_go_on(
    service: ApiClient, limit: str, depth: Depth, free: int, status: int, word: str
) -> None:
    image, fields = picture(1), event()
    service.predict(fields, image)
    admission = service.api.service.admission
    look = admission.look
    admission.look = lambda *_: look(depth, free)  # type: ignore[method-assign]
    admission.look(depth, free)
    writes = [
        service.predict(event(), image), service.upload(image), service.batch([event()]), service.feedback({}),
        service.predict(event(image_id=named(image))),
    ]  # fmt: skip
    for refused in writes:
        assert reason(refused) == (status, word)
        assert int(refused.headers["retry-after"]) >= 1
    for path in (
        "/healthz",
        "/metrics",
        "/v1/status",
        f"/v1/images/{named(image)}",
        f"/v1/predictions/{fields['prediction_id']}",
    ):
        assert service.client.get(path).status_code == 200, path
    search = service.client.post("/v1/search", json={"ids": [ABSENT]})
    assert reason(search)[0] == 422  # asked and answered: the lake has no embedder
    admission.look = look  # type: ignore[method-assign]
    look(Depth(0, 0, None, 0), 1 << 40)
    assert service.predict(event(), image).status_code == 201


def test_beyond_the_rate_the_response_has_retry_after(make_lake: MakeLake, tmp_path: Path) -> None:
    with api_client(make_lake(), tmp_path / "spool", IngestLimits(rate=8)) as service:
        image = picture(1)
        answers = [service.predict(event(), image) for _ in range(6)]
        assert [a.status_code for a in answers[:2]] == [201, 201]  # a quarter of a second's
        refused = answers[-1]
        assert reason(refused) == (429, "rate")
        assert int(refused.headers["retry-after"]) >= 1
        assert reason(service.batch([event(image_base64=in_base64(image))] * 3)) == (429, "rate")
        assert service.client.get("/v1/status").status_code == 200
        assert service.spool.depth().events == sum(a.status_code == 201 for a in answers)


def test_bodies_count_as_in_memory_until_the_response() -> None:
    admission = Admission(IngestLimits(in_flight_bytes=100))
    scope: dict[str, Any] = {"headers": []}
    budget = admission.event_bodies
    assert budget.too_much(1_000) is None  # alone, a request may be of any size
    bodies._hold(scope, budget, 80)
    refused = admission.problem(30)
    assert refused is not None
    assert (refused.status, refused.reason, refused.retry_after) == (503, "busy", 1)
    assert budget.too_much(30, own=80) is None  # the same body, growing
    assert admission.query_bodies.too_much(100) is None  # what others ask has a budget of its own
    bodies.release(scope)
    bodies.release(scope)
    assert budget.held == 0


def test_a_body_that_is_declared_and_never_sent_holds_nothing() -> None:
    async def run() -> None:
        admission = Admission(IngestLimits(in_flight_bytes=100))
        declared = {"type": "http", "headers": [(b"content-length", b"90")]}
        ended = asyncio.Event()

        async def silent() -> Any:
            await ended.wait()
            return {"type": "http.disconnect"}

        async def whole() -> Any:
            return {"type": "http.request", "body": b"x" * 80}

        waiting = asyncio.create_task(bodies.read(dict(declared), silent, 1_000, admission))
        await asyncio.sleep(0)
        assert await bodies.read(dict(declared), whole, 1_000, admission) == b"x" * 80
        ended.set()
        with pytest.raises(ClientGone):
            await waiting

    asyncio.run(run())


def test_a_server_without_a_spool_reads_and_refuses_writes(make_lake: MakeLake) -> None:
    from starlette.testclient import TestClient

    from search_app.api.app import Api

    with TestClient(Api(make_lake())) as client:
        sent = {"Content-Type": "image/png", "Lakeloop-Event": json.dumps(event())}
        refused = client.post("/v1/predictions", content=picture(1), headers=sent)
        assert reason(refused) == (503, "unavailable")
        assert "--spool" in refused.json()["detail"]
        assert client.get("/v1/status").status_code == 200


# An image that does not decode -----------------------------------------------------------------------------


def test_an_image_that_fails_after_its_acknowledgement_is_counted_everywhere(
    make_lake: MakeLake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = make_lake("counted")
    whole = picture(1)
    cut, fields = damaged(whole), event()
    with api_client(lake, tmp_path / "counted" / "spool") as service:
        assert service.predict(fields, cut).status_code == 201
        assert service.predict(event(), whole).status_code == 201
        assert service.api.metrics.registry.get_sample_value("lakeloop_spool_events") is not None
        report = service.drain()
        service.api.metrics.read_drainer(report.as_dict())  # as the drainer's own process does, a line a batch
        assert report.unreadable.total() == 1
        assert "lakeloop_images_unreadable_total 1.0" in service.client.get("/metrics").text
        why = service.prediction(fields["prediction_id"]).json()["image_status"]
        assert "truncated" in why
        assert service.client.get(f"/v1/images/{named(cut)}").content == cut
        assert service.client.get(f"/v1/thumbnails/{named(cut)}").status_code == 404
        assert service.client.get("/v1/status").json()["image_status"] == {why: 1}
        assert service.predict(event(), cut).status_code == 201  # it is known now, and so is what is wrong with it
        assert service.drain().unreadable.total() == 0
        assert service.client.get("/v1/status").json()["image_status"] == {why: 1}
    assert main(["status", "--lake", lake.uri, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["image_status"] == {why: 1}
    assert status["spool"]["events"] == 0
    assert main(["status", "--lake", lake.uri]) == 0
    assert f"no picture   1 images: {why}" in capsys.readouterr().out


def test_a_picture_of_a_hundred_scans_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(UnreadableImage, match=r"20\d scans; the limit is 100"):
        decode.open_image(files.scans(200, 16))


# Metrics ---------------------------------------------------------------------------------------------------


def test_the_metrics_tell_of_requests_the_spool_the_drainer_and_the_lag(service: ApiClient) -> None:
    service.predict(event(), picture(1))
    service.batch([event(image_base64=in_base64(picture(2)))])
    service.client.get("/v1/status")
    service.client.get(f"/v1/thumbnails/{ABSENT}")
    service.client.get("/nothing/here")
    service.client.request("BREW", "/v1/predictions")
    metrics = service.client.get("/metrics").text
    for wanted in (
        'lakeloop_requests_total{method="POST",route="/v1/predictions",status="201"} 1.0',
        f'lakeloop_requests_total{{method="POST",route="{batch.PATH}",status="200"}} 1.0',
        'lakeloop_requests_total{method="GET",route="/v1/thumbnails/{image_id}",status="404"} 1.0',
        'lakeloop_requests_total{method="GET",route="other",status="404"} 1.0',
        'lakeloop_requests_total{method="other",route="/v1/predictions",status="405"} 1.0',
        'lakeloop_request_seconds_count{method="GET",route="/v1/status"} 1.0',
        "lakeloop_spool_commit_seconds_count 2.0", "lakeloop_spool_commit_events_total 2.0",
        "lakeloop_spool_events 2.0", "lakeloop_spool_bytes ", "lakeloop_spool_oldest_seconds ",
        "lakeloop_spool_parked_events 0.0", "lakeloop_drained_events_total 0.0", "lakeloop_drain_seconds_total ",
        "lakeloop_drain_errors_total 0.0", "lakeloop_contradictions_total 0.0", "lakeloop_images_unreadable_total 0.0",
        "lakeloop_embedding_waiting_images ", "lakeloop_embedding_lag_seconds ", "lakeloop_embedded_images_total ",
    ):  # fmt: skip
        assert wanted in metrics, wanted
    assert ABSENT not in metrics
    assert service.client.get("/v1/status").json()["spool"]["events"] == 2


def test_only_post_is_taken_where_events_come_in(service: ApiClient) -> None:
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        refused = service.client.request(method, "/v1/predictions")
        assert reason(refused) == (405, "method_not_allowed")
        assert refused.headers["allow"] == "POST"
