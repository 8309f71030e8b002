"""Access keys: made, listed, revoked, and told from forgeries.

A key is the text `ll_<key_id>_<secret>`. The lake keeps the SHA-256 of the secret only; a secret is 256 random bits, so
there is nothing to guess and no slow hash is needed. `Keyring` is what a server checks requests with. It knows scopes
as words: which request needs which is said in `search_app/security/scopes.py`.
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

SCOPES = ("ingest", "feedback", "read", "sql", "admin")
LONGEST_NAME = 200
# A lake that cannot be read cannot revoke either; ingest goes on without it for as long as the spool would.
GRACE_SECONDS = 600.0

_TOKEN = re.compile(r"ll_([0-9a-z]{12})_([0-9a-f]{64})")
_ALPHABET = string.digits + string.ascii_lowercase
_NOBODY = "0" * 64  # the hash of no secret that anybody can name
_UNITS = {"h": 1, "d": 24, "w": 168}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeyRecord:
    """What the lake knows of a key. Times are UTC; `expires_at` is None for a key without end."""

    key_id: str
    name: str | None
    scopes: tuple[str, ...]
    created_at: dt.datetime
    expires_at: dt.datetime | None
    revoked_at: dt.datetime | None
    secret_sha256: str = field(repr=False)

    def state(self, at: dt.datetime | None = None) -> str:
        """active, expired or revoked, at a moment (default: now)."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= (at or store.now()) else "active"

    def allows(self, scope: str) -> bool:
        """Whether its scopes cover `scope`; admin covers all."""
        return scope in self.scopes or "admin" in self.scopes


def create(
    lake: Lake, name: str | None, scopes: Iterable[str], expires: dt.timedelta | dt.datetime | None = None
) -> tuple[KeyRecord, str]:
    """Makes a key; returns its record and the token, which nothing can show again.

    `expires` is a span from now or a moment (UTC when it has no zone). Raises BadInput for no scope or an unknown one,
    a name that is not one printable line of at most 200 characters, or a moment that is past.
    """
    wanted = tuple(dict.fromkeys(scopes))
    unknown = [one for one in wanted if one not in SCOPES]
    if unknown or not wanted:
        raise BadInput(f"scope {unknown[0]!r} is none of {', '.join(SCOPES)}" if unknown else "a key needs a scope")
    if name is not None and (len(name) > LONGEST_NAME or not name.isprintable()):
        raise BadInput(f"a key's name is one printable line of at most {LONGEST_NAME} characters")
    now = store.now()
    ends = _moment(expires, now)
    secret = secrets.token_hex(32)
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(12))
    record = KeyRecord(key_id, name or None, wanted, now, ends, None, _sha256(secret))
    detail = {"name": record.name, "scopes": [*wanted], "expires_at": ends.isoformat() if ends else None}
    # The entry first: there is never a key that the log does not know.
    audit.record(lake, "key create", key_id, detail=detail)
    lake.insert("keys", _table(record))
    return record, f"ll_{key_id}_{secret}"


def revoke(lake: Lake, key_id: str) -> KeyRecord:
    """Ends a key for ever; servers refuse it within about a second. A revoked key stays as it is.

    Takes a whole token too, to end a key that was found where it should not be. Raises BadInput for an unknown id.
    """
    whole = _TOKEN.fullmatch(key_id)
    record = snapshot(lake).get(whole[1] if whole else key_id)
    if record is None:
        raise BadInput(f"no key {key_id[:80]!r} in {lake.uri}; lakeloop key list shows them")
    if record.revoked_at is None:
        audit.record(lake, "key revoke", record.key_id)
        record = replace(record, revoked_at=store.now())
        lake.update("keys", _table(record))
    return record


def list(lake: Lake) -> Sequence[KeyRecord]:  # `lake.keys.list` reads as what it is
    """Every key, oldest first."""
    return sorted(snapshot(lake).values(), key=lambda one: one.created_at)


def snapshot(lake: Lake) -> dict[str, KeyRecord]:
    """Every key by its id, as the lake has them now."""
    return _records(lake.dataset("keys").to_table())


def match(records: Mapping[str, KeyRecord], token: str) -> KeyRecord | None:
    """The key this token is the secret of, in whatever state; None for a forgery. Constant time in the secret."""
    parts = _TOKEN.fullmatch(token)
    record = records.get(parts[1]) if parts else None
    same = hmac.compare_digest(_sha256(parts[2] if parts else ""), record.secret_sha256 if record else _NOBODY)
    return record if same else None


def span_or_moment(text: str) -> dt.timedelta | dt.datetime:
    """An expiry as people write it: 12h, 90d, 6w, 2027-01-01, or a moment in ISO 8601. Raises BadInput."""
    span = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if span:
        return dt.timedelta(hours=int(span[1]) * _UNITS[span[2]])
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"expiry {text!r}: write a span such as 90d (h, d or w) or a date such as 2027-01-01") from None


class Keyring:
    """The lake's keys in memory, for a server. Safe between threads.

    Checking a token touches no storage. `refresh` asks the lake whether the table changed; whoever checks requests
    calls it as `age` demands, so that a revoked key ends within a second without a look-up for each request.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._lock = threading.Lock()
        self._version = -1
        self._records: dict[str, KeyRecord] = {}
        self._asked = self._answered = time.monotonic()
        self._read()

    def age(self) -> float:
        """Seconds since the lake was last asked."""
        return time.monotonic() - self._asked

    def lost(self) -> bool:
        """Whether the lake has not answered for so long (ten minutes) that its keys must not be trusted any more."""
        return time.monotonic() - self._answered > GRACE_SECONDS

    def refresh(self, older_than: float = 0.0) -> None:
        """Reads the table if it changed, unless the lake was asked less than `older_than` seconds ago.

        When the lake cannot be read it says so in the log, and the keys stay as they were until `lost`.
        """
        with self._lock:
            if self.age() < older_than:
                return
            try:
                self._read()
            except Exception as error:  # object stores fail in many ways; none of them makes a key good or bad
                self._asked = time.monotonic()
                _log.warning("the access keys of %s could not be read: %s", self._lake.uri, error)

    def _read(self) -> None:
        began = time.monotonic()
        dataset = self._lake.dataset("keys")
        if dataset.version != self._version:
            self._records = _records(dataset.to_table())
            self._version = dataset.version
        self._asked = self._answered = began

    def match(self, token: str) -> KeyRecord | None:
        """As `match`, over the keys in memory."""
        return match(self._records, token)

    def get(self, key_id: str) -> KeyRecord | None:
        """The key of that id, in whatever state."""
        return self._records.get(key_id)

    def any_active(self) -> bool:
        """Whether anybody could be let in."""
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
        raise BadInput(f"expiry {expires} lies beyond the year 9999") from None
    if ends <= now:
        raise BadInput(f"expiry {ends:%Y-%m-%d %H:%M} UTC is past; the key would never work")
    return ends


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _table(record: KeyRecord) -> pa.Table:
    return pa.Table.from_pylist([{**vars(record), "scopes": [*record.scopes]}], schema=schema.KEYS.arrow())


def _records(rows: pa.Table) -> dict[str, KeyRecord]:
    return {row["key_id"]: KeyRecord(**{**row, "scopes": tuple(row["scopes"])}) for row in rows.to_pylist()}
