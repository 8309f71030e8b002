"""Access keys: one token opens, every other does not, and the lake holds nothing that could."""

from __future__ import annotations

import datetime as dt
import string
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lake import open_lake
from lake.access import keys
from lake.access.keys import KeyRecord, Keyring
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.storage import store
from search_app.cli.main import main

HOUR = dt.timedelta(hours=1)


def test_a_new_key_opens_with_its_scopes_and_no_others(lk: OpenLake) -> None:
    record, token = keys.create(lk, "line 4", ["ingest", "feedback"], 90 * 24 * HOUR)
    assert keys.match(keys.snapshot(lk), token) == record
    assert (record.name, record.scopes, record.state()) == ("line 4", ("ingest", "feedback"), "active")
    assert [scope for scope in keys.SCOPES if record.allows(scope)] == ["ingest", "feedback"]
    assert record.expires_at is not None
    assert abs(record.expires_at - store.now() - 90 * 24 * HOUR) < HOUR


def test_admin_covers_every_scope(lk: OpenLake) -> None:
    record, _ = keys.create(lk, None, ["admin"])
    assert all(record.allows(scope) for scope in keys.SCOPES)


def test_the_lake_s_files_do_not_hold_the_secret(lk: OpenLake) -> None:
    _, token = keys.create(lk, "line 4", ["ingest"])
    secret = token.rpartition("_")[2].encode()
    written = b"".join(path.read_bytes() for path in Path(lk.uri).rglob("*") if path.is_file())
    assert b"line 4" in written
    assert secret not in written
    assert bytes.fromhex(secret.decode()) not in written
    assert secret.decode() not in repr(keys.list(lk))


def test_a_token_is_256_random_bits_and_its_id(lk: OpenLake) -> None:
    tokens = [keys.create(lk, None, ["read"])[1] for _ in range(3)]
    for token in tokens:
        prefix, key_id, secret = token.split("_")
        assert (prefix, len(key_id), len(bytes.fromhex(secret))) == ("ll", 12, 32)
        assert set(key_id) <= set(string.ascii_lowercase + string.digits)
    assert len({part for token in tokens for part in token.split("_")}) == 1 + 2 * len(tokens)


def _known() -> tuple[dict[str, KeyRecord], str]:
    """A ring of one key, and its token."""
    token = f"ll_{'a1' * 6}_{'0f' * 32}"
    now = store.now()
    record = KeyRecord("a1" * 6, None, ("read",), now, now + HOUR, None, keys._sha256("0f" * 32))
    return {record.key_id: record}, token


@given(position=st.integers(0, 79), other=st.characters())
def test_a_token_with_any_other_character_is_a_forgery(position: int, other: str) -> None:
    records, token = _known()
    forged = token[:position] + other + token[position + 1 :]
    assert (keys.match(records, forged) is not None) == (forged == token)


@given(st.text() | st.from_regex(r"ll_[0-9a-z]{12}_[0-9a-f]{64}", fullmatch=True))
def test_a_token_that_was_never_issued_is_a_forgery_and_no_crash(text: str) -> None:
    records, token = _known()
    assert keys.match(records, text) is None
    for more in ((text or " ") + token, token + (text or " ")):
        assert keys.match(records, more) is None


@given(st.timedeltas(-HOUR, 3 * HOUR))
def test_a_key_works_until_the_moment_it_expires(after: dt.timedelta) -> None:
    records, token = _known()
    record = keys.match(records, token)
    assert record is not None
    assert record.state(record.created_at + after) == ("active" if after < HOUR else "expired")


def test_a_revoked_key_is_known_but_never_active_again(lk: OpenLake) -> None:
    record, token = keys.create(lk, None, ["read"])
    ended = keys.revoke(lk, record.key_id)
    matched = keys.match(keys.snapshot(lk), token)
    assert matched is not None
    assert matched.state() == "revoked"
    assert keys.snapshot(lk)[record.key_id] == ended
    assert keys.revoke(lk, record.key_id).revoked_at == ended.revoked_at, "the first moment stands"


def test_a_leaked_token_can_be_revoked_by_the_token_itself(lk: OpenLake) -> None:
    record, token = keys.create(lk, None, ["read"])
    assert keys.revoke(lk, token).key_id == record.key_id


@pytest.mark.parametrize(
    ("scopes", "name", "expires", "why"),
    [
        ([], None, None, "a key needs a scope"),
        (["read", "write"], None, None, "unknown scope 'write'; the scopes are ingest"),
        (["read"], "two\nlines", None, "one printable line"),
        (["read"], "x" * 201, None, "at most 200"),
        (["read"], None, dt.timedelta(0), "is in the past"),
        (["read"], None, dt.datetime(2020, 1, 1), "is in the past"),
        (["read"], None, dt.timedelta(days=4_000_000), "9999"),
    ],
)
def test_an_invalid_key_is_refused_and_nothing_is_written(
    lk: OpenLake, scopes: list[str], name: str | None, expires: dt.timedelta | dt.datetime | None, why: str
) -> None:
    with pytest.raises(BadInput, match=why):
        keys.create(lk, name, scopes, expires)
    assert not keys.list(lk)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("90d", dt.timedelta(days=90)),
        ("12h", dt.timedelta(hours=12)),
        ("6w", dt.timedelta(weeks=6)),
        ("2027-01-01", dt.datetime(2027, 1, 1)),
        ("2027-01-01T12:00+02:00", dt.datetime(2027, 1, 1, 10, tzinfo=dt.UTC)),
    ],
)
def test_expiries_are_read_as_people_write_them(text: str, means: dt.timedelta | dt.datetime) -> None:
    assert keys.span_or_moment(text) == means


@pytest.mark.parametrize("text", ["", "soon", "90", "-1d", "9999999d", "2027-13-01", "d"])
def test_other_expiries_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="write a span such as 90d"):
        keys.span_or_moment(text)


def test_a_keyring_sees_the_keys_of_another_process_after_a_refresh(lk: OpenLake) -> None:
    ring = Keyring(lk)
    assert not ring.any_active()
    other = open_lake.open(lk.uri)
    record, token = keys.create(other, None, ["read"])
    assert ring.match(token) is None
    ring.refresh(older_than=60)
    assert ring.match(token) is None, "it was asked less than a minute ago"
    ring.refresh()
    assert ring.match(token) == record
    assert ring.any_active()
    keys.revoke(other, record.key_id)
    ring.refresh()
    key = ring.match(token)
    assert key is not None
    assert key.state() == "revoked"
    assert not ring.any_active()


def test_a_keyring_keeps_its_keys_while_the_lake_cannot_be_read_but_not_for_ever(
    lk: OpenLake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record, token = keys.create(lk, None, ["read"])
    ring = Keyring(lk)
    Path(lk.table_uri("keys")).rename(Path(lk.uri) / "gone")
    lk._datasets.clear()
    ring.refresh()
    assert "cannot read the access keys" in caplog.text
    assert ring.match(token) == record
    assert not ring.lost()
    assert ring.age() < 1, "a lake that cannot be read is not asked by every request"
    later = time.monotonic() + keys.GRACE_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert ring.lost()


def test_the_commands_create_list_and_revoke_keys(lk: OpenLake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "list", "--lake", lk.uri]) == 0
    assert "no keys yet" in capsys.readouterr().out
    command = ["key", "create", "--scope", "read", "--scope", "ingest", "--expires", "30d", "--name", "line 4"]
    assert main([*command, "--lake", lk.uri]) == 0
    printed = capsys.readouterr()
    token = printed.out.strip()
    assert keys.match(keys.snapshot(lk), token) is not None
    assert token not in printed.err
    key_id = token.split("_")[1]
    assert main(["key", "revoke", key_id, "--lake", lk.uri]) == 0
    capsys.readouterr()
    assert main(["key", "list", "--lake", lk.uri]) == 0
    listed = capsys.readouterr().out
    assert all(word in listed for word in (key_id, "revoked", "read,ingest", "line 4"))
    assert token.split("_")[2] not in listed


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["create", "--scope", "write"], "unknown scope 'write'"),
        (["create", "--scope", "read", "--expires", "2020-01-01"], "is in the past"),
        (["create", "--scope", "read", "--expires", "soon"], "90d"),
        (["revoke", "nobody"], "lakeloop key list"),
    ],
)
def test_wrong_arguments_exit_with_2_and_one_sentence(
    lk: OpenLake, capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    assert main(["key", *words, "--lake", lk.uri]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert why in printed.err
