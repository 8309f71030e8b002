"""Declares table jobs: every change of state of long work."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.types import UTC, Column, Table

JOBS = Table(
    "jobs",
    (
        "A change of state of a job: long work such as an export or a training. Append only; `jobs_current` has the "
        "state of each job now. Heartbeats and progress are not rows: they are in `jobs/live.sqlite` beside the tables."
    ),
    [
        Column("event_id", pa.string(), "UUID of job, attempt and change, so that no change is stored twice",
               nullable=False),
        Column("job", pa.string(), "the job's id: 12 hex digits", nullable=False),
        Column("kind", pa.string(), "embed, ingest, export, cluster, map, discover, duplicates, train, tune, evaluate,"
                                    " gate or maintain", nullable=False),
        Column("arguments", pa.string(), "what the work was given, a JSON object", nullable=False),
        Column("user", pa.string(), "the user who started it; null: a key did, or anyone on an open server"),
        Column("key_id", pa.string(), "the access key that started it; null: none"),
        Column("detached", pa.bool_(), "a worker process does it; false: the command that started it does",
               nullable=False),
        Column("state", pa.string(), "waiting, running, done, failed or cancelled", nullable=False),
        Column("attempt", pa.int32(), "1, 2, ...: a retry and a takeover begin a new attempt", nullable=False),
        Column("takeovers", pa.int32(), "attempts that followed a dead worker since a person last started it",
               nullable=False),
        Column("created_at", UTC, "when the job was started first: the order of the queue", nullable=False),
        Column("changed_at", UTC, "when the state changed", nullable=False),
        Column("host", pa.string(), "the machine that ran it or runs it; null: none yet"),
        Column("message", pa.string(), "why the state changed, where that is not plain"),
        Column("error", pa.string(), "why it failed"),
        Column("result", pa.string(), "what it made: ids and numbers, a JSON object"),
    ],
    key="event_id",
    indexed=["event_id"],
)  # fmt: skip
