"""Tells Schemathesis how bodies of this API's own media types look, and things that exist.

Loaded by its command (SCHEMATHESIS_HOOKS) in a process of its own.
"""

from __future__ import annotations

import io
import json
import os
import re
import uuid
from contextlib import suppress
from typing import Any

import pyarrow as pa
import schemathesis
from hypothesis import strategies as st

IMAGE = os.environ.get("LAKELOOP_TEST_IMAGE", "")
PREDICTION = os.environ.get("LAKELOOP_TEST_PREDICTION", "")
JOB = os.environ.get("LAKELOOP_TEST_JOB", "")
SLICE = "known@1"

words = st.text(max_size=20)
numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.none())
values = st.recursive(
    st.one_of(words, numbers), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4)
)
NAMES = """
    prediction_id image_id image image_base64 model model_version label confidence scores boxes masks task timestamp
    source latency_ms metadata count
"""
names = st.sampled_from(NAMES.split())
events = st.dictionaries(st.one_of(names, words), values, max_size=8)
complete = st.fixed_dictionaries(
    {"model": words, "label": words},
    optional={"prediction_id": st.uuids().map(str), "image_id": st.just(IMAGE), "confidence": numbers, "count": values},
)
lines = st.one_of(events.map(json.dumps), complete.map(json.dumps), words)
tables = st.lists(st.dictionaries(names, st.one_of(words, numbers, st.binary(max_size=20)), min_size=1), max_size=4)


def _stream(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    table = pa.table({})
    for part in (rows, rows[:1]):  # a column of two types, or a number beyond 64 bits, is not for Arrow
        with suppress(pa.ArrowException, OverflowError):
            table = pa.Table.from_pylist(part)
            break
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


batches = st.lists(lines, max_size=6).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
schemathesis.openapi.media_type("application/x-ndjson", batches)
schemathesis.openapi.media_type(
    "application/vnd.apache.arrow.stream", st.one_of(tables.map(_stream), st.binary(max_size=200))
)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Replaces some well-formed ids and keys by existing or new ones, so that the code behind the check runs, too."""
    del context, kwargs
    for values in (case.body, case.path_parameters):
        if isinstance(values, dict):
            for name, known in (("image_id", IMAGE), ("prediction_id", PREDICTION)):
                value = values.get(name)
                own = name == "prediction_id" and case.path == "/v1/predictions"
                if isinstance(value, str) and len(value) == len(known) and value[0] in "02468ace" and not own:
                    values[name] = known
    named = case.path_parameters.get("slice_name") if case.path_parameters else None
    if isinstance(named, str) and case.method != "DELETE" and len(named) % 4:
        case.path_parameters["slice_name"] = SLICE
    if case.method == "GET" and case.path_parameters and "job" in case.path_parameters:
        case.path_parameters["job"] = JOB if len(case.path_parameters["job"]) % 4 else "none"
    for name, value in dict(case.headers or {}).items():
        if name.lower() == "idempotency-key" and re.fullmatch("[!-~]{1,200}", value) and len(value) % 2:
            case.headers[name] = uuid.uuid4().hex
        elif name.lower() == "lakeloop-event":
            case.headers[name] = re.sub(r'"image_id": *"[0-9a-f]{64}",?', "", value)
