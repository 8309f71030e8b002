"""POST /v1/predictions/batch: many answers in one request and one commit, each with a status of its own.

NDJSON is parsed here; Arrow, whose reader trusts what it reads, in a worker process that may die of it.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lake import ids
from lake.errors import LakeloopError
from lake.images.workers import HTTP_MEMORY_BYTES, WorkerDied, WorkerPool
from lake.spool import events
from search_app.api import bodies
from search_app.api.problems import Problem, problem_of
from search_app.api.routes.predictions import contradiction, named_image, unknown_image, with_image

if TYPE_CHECKING:
    import pyarrow as pa

    from lake.spool.events import Event
    from lake.spool.journal import Outcome
    from search_app.api.service import Service

PATH = "/v1/predictions/batch"
NDJSON = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
MOST_EVENTS = 1_000

Item = dict[str, Any] | Problem


class ArrowReader:
    """One worker that parses Arrow streams, started when first needed."""

    def __init__(self) -> None:
        self._pool: WorkerPool | None = None
        self._lock = threading.Lock()

    def items(self, body: bytes) -> list[Item]:
        """The rows of the stream. Raises Problem when it is none."""
        with self._lock:
            if self._pool is None:
                self._pool = WorkerPool(f"{__name__}:arrow_rows", 1, memory_bytes=2 * HTTP_MEMORY_BYTES, timeout=20)
            found = self._pool.run(body, MOST_EVENTS)
        if isinstance(found, WorkerDied):
            raise Problem(422, "not_arrow", f"the Arrow stream cannot be read: {found.reason}")
        if isinstance(found, str):
            raise Problem(422, "not_arrow", found)
        return list(found)

    def close(self) -> None:
        with self._lock:
            if self._pool is not None:
                self._pool.close()
            self._pool = None


def arrow_rows(body: bytes, most: int) -> list[dict[str, Any]] | str:
    """Runs in the worker: the rows, or why there are none."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    try:
        with pa.ipc.open_stream(body) as reader:
            for batch in reader:
                batch.validate(full=True)
                if len(rows) + batch.num_rows > most:
                    return f"more than {most:,} events in one batch"
                # Compressed columns, and values that share a buffer, say far more than they have bytes.
                if batch.nbytes > bodies.BATCH_BYTES:
                    return f"more than {bodies.BATCH_BYTES >> 20} MiB when it is unpacked"
                rows += _microseconds(batch).to_pylist(maps_as_pydicts="lossy")
                if sum(len(v) for row in rows for v in row.values() if isinstance(v, bytes)) > bodies.BATCH_BYTES:
                    return f"more than {bodies.BATCH_BYTES >> 20} MiB of images"
    except Exception as error:  # Arrow's readers raise many kinds for broken streams
        return f"the Arrow stream cannot be read: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def _microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Python's times have no nanoseconds, and pandas, which has some, may not be there."""
    import pyarrow as pa

    def kind(given: pa.DataType) -> pa.DataType:
        return pa.timestamp("us", given.tz) if pa.types.is_timestamp(given) and given.unit == "ns" else given

    return batch.cast(pa.schema([field.with_type(kind(field.type)) for field in batch.schema]), safe=False)


def json_items(body: bytes) -> list[Item]:
    """The lines of NDJSON; a line that is no JSON object is refused by itself. Raises Problem for too many."""
    # Counted first: a body of nothing but line ends would become a list of many times its size.
    if body.count(b"\n") > 2 * MOST_EVENTS:
        raise Problem(413, "too_many", f"more than {MOST_EVENTS:,} events in one batch")
    lines = [line for line in body.split(b"\n") if line.strip()]
    if len(lines) > MOST_EVENTS:
        raise Problem(413, "too_many", f"{len(lines):,} events in one batch; {MOST_EVENTS:,} are the most")
    found: list[Item] = []
    for line in lines:
        try:
            given = bodies.json_object(line, "the line")
            if "image_base64" in given:
                given["image"] = _decoded(given.pop("image_base64"))
            elif not isinstance(given.get("image", ""), str):
                raise Problem(422, "no_image", "image is not text; send the bytes as image_base64")
            found.append(given)
        except Problem as problem:
            found.append(problem)
    return found


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise Problem(422, "no_image", f"image_base64 is not Base64: {error}") from error


def checked(items: Sequence[Item], service: Service, key_id: str | None) -> list[Event | Problem]:
    """Each item as an event or as what is wrong with it; one never harms another."""
    found: list[Event | Problem] = []
    for item in items:
        try:
            if isinstance(item, Problem):
                raise item
            data = item.get("image")
            if isinstance(data, bytes):
                rest = {k: v for k, v in item.items() if k != "image"}
                found.append(with_image(rest, data, service, key_id))
            else:
                found.append(events.prediction(item, service.promoted, named_image(item), None, key_id))
        except (Problem, LakeloopError, RecursionError) as error:
            problem = problem_of(error)
            assert problem is not None
            found.append(problem)
    return found


async def refuse_unknown_images(found: list[Event | Problem], service: Service) -> None:
    """An event may name an image that is stored, or one that comes in the same batch."""
    here = {e.image_id for e in found if not isinstance(e, Problem) and e.data is not None}
    named = {e.image_id for e in found if not isinstance(e, Problem) and e.data is None} - here
    unknown = await service.unknown_images(sorted(named))
    for index, event in enumerate(found):
        if not isinstance(event, Problem) and event.data is None and event.image_id in unknown:
            found[index] = unknown_image(event.image_id)


def facts(items: Sequence[Item], checked: Sequence[Event | Problem]) -> list[dict[str, Any]]:
    """The response's `items` in the order they came, without the outcomes of those that go to the spool."""
    rows = []
    for index, (item, event) in enumerate(zip(items, checked, strict=True)):
        if isinstance(event, Problem):
            own = item.get("prediction_id") if isinstance(item, dict) else None
            rows.append(_refused(index, ids.as_uuid(own) if isinstance(own, str) else None, event))
        else:
            rows.append({"index": index, "prediction_id": event.event_id, "image_id": event.image_id})
    return rows


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
