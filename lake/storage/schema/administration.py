"""Tables of access keys, the audit log, erased images and migrations."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.types import UTC, Column, Table

KEYS = Table(
    "keys",
    "An access key of the HTTP API. The secret itself is not stored.",
    [
        Column("key_id", pa.string(), "the public part of the key", nullable=False),
        Column("name", pa.string(), "what it is for, in its author's words"),
        Column("scopes", pa.list_(pa.string()), "of ingest, feedback, read, sql and admin", nullable=False),
        Column("secret_sha256", pa.string(), "SHA-256 of the secret (256 random bits), 64 hex digits", nullable=False),
        Column("created_at", UTC, "when it was created", nullable=False),
        Column("expires_at", UTC, "when it expires; null: never"),
        Column("revoked_at", UTC, "when it was revoked; null: not revoked"),
    ],
    key="key_id",
)

AUDIT = Table(
    "audit",
    "Who wrote what. Append only.",
    [
        Column("event_id", pa.string(), "UUID of the event", nullable=False),
        Column("timestamp", UTC, "when it was accepted", nullable=False),
        Column("key_id", pa.string(), "the access key it came with; null: none"),
        Column("user", pa.string(), "the operating system's user who ran a command; null: it came over HTTP"),
        Column(
            "action",
            pa.string(),
            "prediction, image, feedback, or the command (key create, forget, ...)",
            nullable=False,
        ),
        Column("target", pa.string(), "the id or name of what was written"),
        Column("detail", pa.string(), "details, a JSON object"),
    ],
    key="event_id",
    indexed=["event_id"],
)

FORGOTTEN = Table(
    "forgotten",
    "An erased image. It is never stored again, whatever its source.",
    [
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("forgotten_at", UTC, "when it was erased", nullable=False),
        Column("reason", pa.string(), "why, in the person's own words"),
    ],
    key="image_id",
    indexed=["image_id"],
)

MIGRATIONS = Table(
    "migrations",
    "A numbered migration step that was applied to this lake.",
    [
        Column("number", pa.int32(), "1, 2, ... in the order applied", nullable=False),
        Column("name", pa.string(), "what the step did", nullable=False),
        Column("applied_at", UTC, "when", nullable=False),
        Column("lakeloop_version", pa.string(), "the version of lakeloop that applied it", nullable=False),
    ],
    key="number",
)
