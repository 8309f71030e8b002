"""Access keys: creates, lists, revokes and checks them.

A key is the text `ll_<key_id>_<secret>`. The lake stores only the SHA-256 of the secret. A secret is 256 random bits,
so nobody can guess it and no slow hash is needed. A server checks requests with a `Keyring`. Scopes are only words
here: `search_app/security/scopes.py` says which request needs which.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import logging
import re
import secrets
import string
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from lake.access import audit
from lake.errors import BadInput
from lake.storage import schema, store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lake.storage.store import Lake

SCOPES = ("ingest", "feedback", "read", "sql", "edit", "admin")
LONGEST_NAME = 200
# While the lake cannot be read, revocations are not seen. A server trusts its keys for this long.
GRACE_SECONDS = 600.0

_TOKEN = re.compile(r"ll_([0-9a-z]{12})_([0-9a-f]{64})")
_ALPHABET = string.digits + string.ascii_lowercase
_NOBODY = "0" * 64  # the hash of no known secret
_UNITS = {"h": 1, "d": 24, "w": 168}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyRecord:
    """The lake's record of a key. Times are UTC; `expires_at` is None for a key that does not expire."""

    key_id: str
    name: str | None
    scopes: tuple[str, ...]
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    secret_sha256: str = field(repr=False)

    def state(self, at: dt.datetime | None = None) -> str:
        """active, expired or revoked at the time `at` (default: now)."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= (at or store.now()) else "active"

    def allows(self, scope: str) -> bool:
        """Whether the key has `scope`; admin has all scopes."""
        return scope in self.scopes or "admin" in self.scopes


def create(
    lake: Lake, name: str | None, scopes: Iterable[str], expires: dt.timedelta | dt.datetime | None = None
) -> tuple[KeyRecord, str]:
    """Creates a key. Returns its record and the token, which cannot be shown again.

    `expires` is a span from now or a time (UTC if it has no zone). Raises BadInput for no scope or an unknown one, for
    a name that is not one printable line of at most 200 characters, and for a time in the past.
    """
    scopes = tuple(dict.fromkeys(scopes))
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown:
        raise BadInput(f"unknown scope {unknown[0]!r}; the scopes are {', '.join(SCOPES)}")
    if not scopes:
        raise BadInput(f"a key needs a scope; the scopes are {', '.join(SCOPES)}")
    if name is not None and (len(name) > LONGEST_NAME or not name.isprintable()):
        raise BadInput(f"the name of a key must be one printable line of at most {LONGEST_NAME} characters")
    now = store.now()
    ends = _moment(expires, now)
    secret = secrets.token_hex(32)
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(12))
    record = KeyRecord(key_id, name or None, scopes, now, ends, None, _sha256(secret))
    detail = {"name": record.name, "scopes": [*scopes], "expires_at": ends.isoformat() if ends else None}
    # The audit entry comes first, so that every key is in the log.
    audit.record(lake, "key create", key_id, detail=detail)
    lake.insert("keys", _table(record))
    return record, f"ll_{key_id}_{secret}"


def revoke(lake: Lake, key_id: str) -> KeyRecord:
    """Revokes a key for good. Servers refuse it within about a second. A revoked key stays as it is.

    It also takes a whole token, to revoke a leaked key. Raises BadInput for an unknown id.
    """
    token = _TOKEN.fullmatch(key_id)
    record = snapshot(lake).get(token[1] if token else key_id)
    if record is None:
        raise BadInput(f"no key {key_id[:80]!r} in {lake.uri}; list the keys with: lakeloop key list")
    if record.revoked_at is None:
        audit.record(lake, "key revoke", record.key_id)
        record = replace(record, revoked_at=store.now())
        lake.update("keys", _table(record))
    return record


def list(lake: Lake) -> Sequence[KeyRecord]:
    """All keys, oldest first."""
    return sorted(snapshot(lake).values(), key=lambda key: key.created_at)


def snapshot(lake: Lake) -> dict[str, KeyRecord]:
    """All keys by id, as they are in the lake now."""
    return _records(lake.dataset("keys").to_table())


def match(records: Mapping[str, KeyRecord], token: str) -> KeyRecord | None:
    """The key of this token, active or not; None for an invalid token. The comparison takes constant time."""
    parts = _TOKEN.fullmatch(token)
    record = records.get(parts[1]) if parts else None
    same = hmac.compare_digest(_sha256(parts[2] if parts else ""), record.secret_sha256 if record else _NOBODY)
    return record if same else None


def span_or_moment(text: str) -> dt.timedelta | dt.datetime:
    """Parses an expiry: 12h, 90d, 6w, 2027-01-01, or a time in ISO 8601. Raises BadInput."""
    span = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if span:
        return dt.timedelta(hours=int(span[1]) * _UNITS[span[2]])
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(
            f"invalid expiry {text!r}: write a span such as 90d (h, d or w) or a date such as 2027-01-01"
        ) from None


class Keyring:
    """The keys of the lake in memory, for a server. Threads may share it.

    Checking a token reads no storage. `refresh` reads the table if it changed. The caller refreshes by `age`, so that a
    revoked key ends within a second without a look-up for each request.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._lock = threading.Lock()
        self._version = -1
        self._records: dict[str, KeyRecord] = {}
        self._tried_at = self._read_at = time.monotonic()
        self._read()

    def age(self) -> float:
        """Seconds since the last attempt to read the keys."""
        return time.monotonic() - self._tried_at

    def lost(self) -> bool:
        """Whether the keys could not be read for ten minutes, so that they must no longer be trusted."""
        return time.monotonic() - self._read_at > GRACE_SECONDS

    def refresh(self, older_than: float = 0.0) -> None:
        """Reads the table if it changed, unless the last attempt is less than `older_than` seconds ago.

        If the lake cannot be read, it logs a warning and the keys stay as they were, until `lost`.
        """
        with self._lock:
            if self.age() < older_than:
                return
            try:
                self._read()
            except Exception as error:  # object stores fail in many ways, and no failure changes a key
                self._tried_at = time.monotonic()
                _log.warning("cannot read the access keys of %s: %s", self._lake.uri, error)

    def _read(self) -> None:
        started = time.monotonic()
        dataset = self._lake.dataset("keys")
        if dataset.version != self._version:
            self._records = _records(dataset.to_table())
            self._version = dataset.version
        self._tried_at = self._read_at = started

    def match(self, token: str) -> KeyRecord | None:
        """As the function `match`, with the keys in memory."""
        return match(self._records, token)

    def get(self, key_id: str) -> KeyRecord | None:
        """The key with this id, active or not; None if unknown."""
        return self._records.get(key_id)

    def any_active(self) -> bool:
        """Whether any key is active."""
        return any(record.state() == "active" for record in self._records.values())


def _moment(expires: dt.timedelta | dt.datetime | None, now: dt.datetime) -> dt.datetime | None:
    if expires is None:
        return None
    try:
        if isinstance(expires, dt.timedelta):
            ends = now + expires
        else:
            ends = expires.replace(tzinfo=dt.UTC) if expires.tzinfo is None else expires.astimezone(dt.UTC)
    except OverflowError:
        raise BadInput(f"expiry {expires} is after the year 9999") from None
    if ends <= now:
        raise BadInput(f"expiry {ends:%Y-%m-%d %H:%M} UTC is in the past; choose a later time")
    return ends


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _table(record: KeyRecord) -> pa.Table:
    return pa.Table.from_pylist([{**vars(record), "scopes": [*record.scopes]}], schema=schema.KEYS.arrow())


def _records(rows: pa.Table) -> dict[str, KeyRecord]:
    return {row["key_id"]: KeyRecord(**{**row, "scopes": tuple(row["scopes"])}) for row in rows.to_pylist()}
