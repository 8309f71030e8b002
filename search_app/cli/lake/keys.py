"""key create, list, revoke: access keys for the HTTP API and the app."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from search_app.cli.terminal import Add, open_lake, output

if TYPE_CHECKING:
    from lake.access.keys import KeyRecord


def register(add: Add, keys: Any) -> None:
    p = add("create", _create, "create an access key; it is shown only once", keys, writes=True)
    p.add_argument(
        "--scope",
        action="append",
        required=True,
        metavar="SCOPE",
        help="ingest, feedback, read, sql or admin (all of them); repeat for more",
    )
    p.add_argument("--name", metavar="TEXT", help="what the key is for")
    p.add_argument("--expires", metavar="WHEN", help="90d, 12h, 6w or 2027-01-01 (UTC); default: never")
    add("list", _list, "list the access keys, without their secrets", keys)
    p = add("revoke", _revoke, "revoke an access key", keys, writes=True)
    p.add_argument("key_id", metavar="KEY_ID")


def _create(args: argparse.Namespace) -> int:
    from lake.access import keys

    expires = keys.span_or_moment(args.expires) if args.expires else None
    record, token = keys.create(open_lake(args), args.name, args.scope, expires)
    until = f", until {record.expires_at:%Y-%m-%d %H:%M} UTC" if record.expires_at else ""
    print(f"key {record.key_id} for {', '.join(record.scopes)}{until}; it is not shown again", file=sys.stderr)
    return output(args, _facts(record) | {"token": token}, token)


def _list(args: argparse.Namespace) -> int:
    from lake.access import keys

    records = keys.list(open_lake(args))
    lines = []
    for record in records:
        until = f"until {record.expires_at:%Y-%m-%d %H:%M} UTC" if record.expires_at else "no expiry"
        line = f"{record.key_id}  {record.state():<7}  {','.join(record.scopes):<24}  {until:<26}  {record.name or ''}"
        lines.append(line.rstrip())
    text = "\n".join(lines) or "no keys yet; create one with: lakeloop key create --scope read"
    return output(args, [_facts(record) for record in records], text)


def _revoke(args: argparse.Namespace) -> int:
    from lake.access import keys

    record = keys.revoke(open_lake(args), args.key_id)
    text = f"key {record.key_id} is revoked; running servers refuse it within a second"
    return output(args, _facts(record), text)


def _facts(record: KeyRecord) -> dict[str, Any]:
    from lake.sql import tables

    names = ("key_id", "name", "scopes", "created_at", "expires_at", "revoked_at")
    facts: dict[str, Any] = tables.plain({name: getattr(record, name) for name in names})
    return facts | {"state": record.state()}
