"""spool parked list, retry, drop: accepted events that could not be written to the lake."""

from __future__ import annotations

import argparse
import datetime as dt
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, output, uri


def register(add: Add, group: Any) -> None:
    help = "accepted events that could not be written to the lake"
    parked = group.add_parser("parked", help=help, description=help)
    actions = parked.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _spool(add("list", _list, "list them with their reasons, oldest first", actions))
    p = _spool(add("retry", _retry, "let the drainer try them again", actions, writes=True))
    p.add_argument("ids", nargs="*", metavar="EVENT_ID", help="default: all")
    p = _spool(add("drop", _drop, "remove them for good", actions, writes=True))
    p.add_argument("ids", nargs="+", metavar="EVENT_ID")


def _spool(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--spool", type=Path, metavar="DIR", help="default: the spool in the folder of the lake")
    return parser


def _list(args: argparse.Namespace) -> int:
    from lake.sql import tables

    with _opened(args) as spool:
        events = spool.parked.list()
    facts = [asdict(event) | {"received": _time(event.received)} for event in events]
    lines = [f"{f['received']}  {f['kind']:<10}  {f['event_id']}  {tables.printable(f['reason'])}" for f in facts]
    return output(args, facts, "\n".join(lines) or "no parked events")


def _retry(args: argparse.Namespace) -> int:
    with _opened(args) as spool:
        count = spool.parked.retry(args.ids or None)
    _require(args.ids, count)
    text = f"{count:,} events wait again; a running server tries them at once, else the next command on this lake"
    return output(args, {"retried": count}, text)


def _drop(args: argparse.Namespace) -> int:
    import lake
    from lake.access import audit

    with _opened(args) as spool:
        count = spool.parked.drop(args.ids)
    _require(args.ids, count)
    audit.record(lake.open(uri(args)), "spool drop", None, detail={"event_ids": args.ids})
    return output(args, {"dropped": count}, f"dropped {count:,} events")


def _opened(args: argparse.Namespace) -> Any:
    from contextlib import closing

    from lake.spool.spool import Spool, beside

    folder = args.spool or beside(uri(args))
    if folder is None or not (folder / "spool.sqlite").exists():
        raise BadInput(f"{folder or uri(args)} has no spool; name one with --spool DIR")
    return closing(Spool(folder))


def _require(ids: list[str], count: int) -> None:
    if count < len(ids):
        raise BadInput(f"{len(ids) - count} of the {len(ids)} events are not parked; see: lakeloop spool parked list")


def _time(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
