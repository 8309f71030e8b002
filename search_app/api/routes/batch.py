"""POST /v1/predictions/batch: many predictions in one request and commit, each with its own status.

NDJSON is parsed here; Arrow, whose reader trusts its input, in a worker process that may crash.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from lake import ids
from lake.errors import LakeloopError
from lake.images.image_header import upright_sizes
from lake.images.workers import HTTP_MEMORY_BYTES, WorkerDied, WorkerPool
from lake.spool import events
from search_app.api import bodies
from search_app.api.problems import Problem, problem_of
from search_app.api.routes.predictions import contradiction, facts_of, named_image, unknown_image, with_image

if TYPE_CHECKING:
    import pyarrow as pa

    from lake.spool.events import Event
    from lake.spool.journal import Outcome
    from search_app.api.service import Service

PATH = "/v1/predictions/batch"
NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
MOST_EVENTS = 1_000
MOST_TEXT = 32 << 20  # bytes of all events without their images

Item = dict[str, Any] | Problem


class BatchItem(BaseModel):
    """The result for one event; `reason` and `detail` if it was refused, `clamped` if confidences or scores were."""

    index: int
    prediction_id: str | None = None
    image_id: str | None = None
    status: Literal["stored", "known", "refused"]
    code: int
    clamped: int | None = None
    reason: str | None = None
    detail: str | None = None


class BatchResponse(BaseModel):
    items: list[BatchItem]


class ArrowReader:
    """One worker that parses Arrow streams, started when first needed."""

    def __init__(self) -> None:
        self._pool: WorkerPool | None = None
        self._lock = threading.Lock()

    def items(self, body: bytes) -> list[Item]:
        """The rows of the stream. Raises Problem if it cannot be read."""
        with self._lock:
            if self._pool is None:
                self._pool = WorkerPool(
                    f"{__name__}:arrow_rows", 1, memory_bytes=2 * HTTP_MEMORY_BYTES, timeout=20,
                    answer_bytes=3 * bodies.BATCH_BYTES, structure_bytes=2 * bodies.BATCH_BYTES,
                )  # fmt: skip
            rows = self._pool.run(body, MOST_EVENTS)
        if isinstance(rows, WorkerDied):
            raise Problem(422, "not_arrow", f"the Arrow stream cannot be read: {rows.reason}")
        if isinstance(rows, str):
            raise Problem(422, "not_arrow", rows)
        return [row if isinstance(row, dict) else _too_large() for row in rows]

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.close()
            self._pool = None


def arrow_rows(body: bytes, most: int) -> list[dict[str, Any] | None] | str:
    """Runs in the worker: the rows, None for one that is too large, or the reason why they cannot be read."""
    import pyarrow as pa

    rows: list[dict[str, Any] | None] = []
    size = 0
    try:
        with pa.ipc.open_stream(body) as reader:
            for batch in reader:
                batch.validate(full=True)
                if len(rows) + batch.num_rows > most:
                    return f"more than {most:,} events in one batch"
                # Compressed columns, and values that share a buffer, hold far more than their bytes.
                if batch.nbytes > bodies.BATCH_BYTES:
                    return f"more than {bodies.BATCH_BYTES >> 20} MiB when it is unpacked"
                batch = _microseconds(batch)
                for number in range(batch.num_rows):  # one by one: a dictionary's value may be in every row
                    [row] = batch.slice(number, 1).to_pylist(maps_as_pydicts="lossy")
                    image = row.get("image")
                    text = _size({k: v for k, v in row.items() if k != "image"})
                    size += text + _size(image)
                    if size > bodies.BATCH_BYTES:
                        return f"more than {bodies.BATCH_BYTES >> 20} MiB when it is unpacked"
                    fits = text <= bodies.EVENT_BYTES
                    rows.append({k: _plain(v) for k, v in row.items() if v is not None} if fits else None)
    except Exception as error:  # Arrow's readers raise many kinds for broken streams
        return f"the Arrow stream cannot be read: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
    return rows


def _plain(value: Any) -> Any:
    """The value without the types that Arrow has and JSON has not; bytes and times stay."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    known = value is None or isinstance(value, str | int | float | bytes | dt.datetime)
    return value if known else str(value)


def _size(value: Any) -> int:
    """About the bytes of a value in memory: of its text and bytes, and 64 for each value and each list."""
    if isinstance(value, str | bytes):
        return 64 + len(value)
    if isinstance(value, dict):
        return 64 + sum(len(str(key)) + _size(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return 64 + sum(map(_size, value))
    return 64


def _microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with times in microseconds: Python's times have no nanoseconds, and pandas may not be installed."""
    import pyarrow as pa

    def converted(type: pa.DataType) -> pa.DataType:
        return pa.timestamp("us", type.tz) if pa.types.is_timestamp(type) and type.unit == "ns" else type

    return batch.cast(pa.schema([field.with_type(converted(field.type)) for field in batch.schema]), safe=False)


class JsonItems:
    """The lines of NDJSON as dictionaries or the problems with them, parsed one at a time: all of them at once would
    take twenty times their bytes. Raises Problem if there are too many, or too much of them besides their images.
    """

    def __init__(self, body: bytes) -> None:
        # Count first: a body of nothing but line ends would become a list of many times its size.
        if body.count(b"\n") > 2 * MOST_EVENTS:
            raise Problem(413, "too_many", f"more than {MOST_EVENTS:,} events in one batch")
        self._body = body
        self._lines: list[tuple[int, int]] = []
        start = text = values = 0
        while start < len(body):
            end = body.find(b"\n", start)
            end = len(body) if end < 0 else end
            if body[start:end].strip():
                self._lines.append((start, end))
                size, own = self._text_bytes(start, end), bodies.values(body, start, end)
                if (
                    size <= bodies.EVENT_BYTES and own <= bodies.MOST_VALUES
                ):  # others are refused alone, without parsing
                    text, values = text + size, values + own
            start = end + 1
        if len(self) > MOST_EVENTS:
            raise Problem(413, "too_many", f"{len(self):,} events in one batch; at most {MOST_EVENTS:,} are allowed")
        if text > MOST_TEXT:
            raise bodies.too_large(MOST_TEXT, "a batch without its images")
        if values > bodies.MOST_VALUES:
            raise Problem(413, "too_large", f"more than {bodies.MOST_VALUES:,} values in one batch: send fewer events")

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Item]:
        for start, end in self._lines:
            try:
                if self._text_bytes(start, end) > bodies.EVENT_BYTES:
                    raise _too_large()
                fields = bodies.json_object(self._body[start:end], "the line")
                if "image_base64" in fields:
                    fields["image"] = _decoded(fields.pop("image_base64"))
                elif not isinstance(fields.get("image", ""), str):
                    raise Problem(422, "no_image", "image is not text; send the bytes as image_base64")
                yield fields
            except Problem as problem:
                yield problem

    def _text_bytes(self, start: int, end: int) -> int:
        """The length of the line without the text of its image."""
        name = b'"image_base64"'
        at = self._body.find(name, start, end)
        if at < 0:
            return end - start
        first = self._body.find(b'"', at + len(name), end)
        last = self._body.find(b'"', first + 1, end) if first >= 0 else -1
        return end - start - max(0, last - first)


def _too_large() -> Problem:
    return bodies.too_large(bodies.EVENT_BYTES, "an event without its image")


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise Problem(422, "no_image", f"image_base64 is not Base64: {error}") from error


def checked(
    items: Iterable[Item], service: Service, key_id: str | None
) -> tuple[list[str | None], list[Event | Problem]]:
    """The prediction_id that each item names, if it is a UUID; and each item as an event, or as the problem with it.

    A wrong item does not affect the others.
    """
    names: list[str | None] = []
    checked: list[Event | Problem] = []
    for item in items:
        own = item.get("prediction_id") if isinstance(item, dict) else None
        names.append(ids.as_uuid(own) if isinstance(own, str) else None)
        try:
            if isinstance(item, Problem):
                raise item
            data = item.get("image")
            if isinstance(data, bytes):
                rest = {k: v for k, v in item.items() if k != "image"}
                checked.append(with_image(rest, data, service, key_id))
            else:
                checked.append(events.prediction(item, service.promoted, named_image(item), None, key_id))
        except (Problem, LakeloopError, RecursionError) as error:
            problem = problem_of(error)
            assert problem is not None
            checked.append(problem)
    return names, checked


async def refuse_unknown_images(checked: list[Event | Problem], service: Service) -> None:
    """Replaces events that name an image which is neither stored nor in the same batch by problems."""
    in_batch = {e.image_id for e in checked if not isinstance(e, Problem) and e.data is not None}
    named = {e.image_id for e in checked if not isinstance(e, Problem) and e.data is None} - in_batch
    unknown = await service.unknown_images(sorted(named))
    for index, event in enumerate(checked):
        if not isinstance(event, Problem) and event.data is None and event.image_id in unknown:
            checked[index] = unknown_image(event.image_id)


def refuse_masks_of_other_sizes(checked: list[Event | Problem], service: Service) -> None:
    """Replaces events by problems whose masks have another size than their image: see `events.check_masks`."""
    masked = {e.image_id for e in checked if not isinstance(e, Problem) and e.mask_sizes}
    sizes = service.image_sizes(sorted(masked)) if masked else {}
    for event in checked:
        if not isinstance(event, Problem) and event.data is not None and event.image_id in masked:
            sizes[event.image_id] = upright_sizes(event.data)
    for index, event in enumerate(checked):
        try:
            if not isinstance(event, Problem):
                events.check_masks(event, sizes.get(event.image_id))
        except LakeloopError as error:
            problem = problem_of(error)
            assert problem is not None
            checked[index] = problem


def facts(names: Sequence[str | None], checked: Sequence[Event | Problem]) -> list[dict[str, Any]]:
    """The response's `items` in the order they came, without the outcomes of those that go to the spool."""
    return [
        _refused(index, name, event) if isinstance(event, Problem) else {"index": index, **facts_of(event)}
        for index, (name, event) in enumerate(zip(names, checked, strict=True))
    ]


def response(facts: dict[str, Any], outcomes: Sequence[Outcome]) -> tuple[int, bytes]:
    """Status and body for a batch: each item that went to the spool gets its outcome."""
    left = iter(outcomes)
    items = []
    for row in facts["items"]:
        if "status" in row:
            items.append(row)
        elif (outcome := next(left)) == "contradiction":
            items.append(_refused(row["index"], row["prediction_id"], contradiction(row["prediction_id"])))
        else:
            items.append({**row, "status": outcome, "code": 201 if outcome == "stored" else 200})
    return 200, json.dumps({"items": items}, ensure_ascii=False).encode("utf-8", "replace")


def _refused(index: int, prediction_id: str | None, problem: Problem) -> dict[str, Any]:
    return {
        "index": index,
        "prediction_id": prediction_id,
        "status": "refused",
        "code": problem.status,
        "reason": problem.reason,
        "detail": problem.detail,
    }
