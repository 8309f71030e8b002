"""sql, query save, query list, query show, query delete, query history: asking the lake in SQL."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, LakeloopError
from search_app.cli.terminal import Add, open_lake, output

if TYPE_CHECKING:
    from lake.sql.sandbox.results import QueryResult
    from lake.storage.store import Lake


def register(add: Add, group: Any) -> None:
    p = add("sql", _sql, "run one SELECT over the lake's tables and views")
    p.add_argument("query", metavar="SELECT", nargs="?", help="with $name where a parameter's value goes")
    p.add_argument("--saved", metavar="NAME", help="a saved query instead")
    p.add_argument("--param", action="append", metavar="NAME=VALUE", help="a parameter: a number, true, false, null, a JSON list, else text")  # fmt: skip  # noqa: E501
    p.add_argument("--format", choices=("table", "json", "csv", "parquet"))
    p.add_argument("--out", metavar="FILE")
    p.add_argument("--timeout", type=float, metavar="S", help="seconds until it must have ended; default: 30")
    p.add_argument("--max-rows", type=int, metavar="N", help="default: 100,000; with --out: all")

    p = add("save", _save, "save a query under a name", group)
    p.add_argument("name", metavar="NAME")
    p.add_argument("query", metavar="SELECT")
    p.add_argument("--param", action="append", metavar="NAME=VALUE", help="a parameter's value when none is given")
    p.add_argument("--description", metavar="TEXT")
    p.add_argument("--replace", action="store_true", help="in place of the one of that name")

    add("list", _list, "the saved queries", group)

    p = add("show", _show, "one saved query", group)
    p.add_argument("name", metavar="NAME")

    p = add("delete", _delete, "take a saved query from the list", group)
    p.add_argument("name", metavar="NAME")

    p = add("history", _history, "what was asked, newest first", group)
    p.add_argument("--most", type=int, default=50, metavar="N", help="default: 50")


def _sql(args: argparse.Namespace) -> int:
    from pathlib import Path

    from lake.sql import saved_queries, tables

    if (args.query is None) == (args.saved is None):
        raise BadInput("give a SELECT, or --saved NAME for a saved query")
    format = args.format or ("json" if args.json else "table")
    if args.json and format != "json":
        raise BadInput("--json and --format are two wishes for one output; give one")
    if format == "parquet" and not args.out:
        raise BadInput("parquet goes to a file: give --out FILE")
    opened = open_lake(args)
    parameters: dict[str, Any] = {}
    if args.saved is not None:
        saved = saved_queries.get(opened, args.saved)
        args.query, parameters = saved.sql, dict(saved.parameters)
    parameters |= _parameters(args.param)
    found = _asked(args, opened, parameters)
    if args.out:
        tables.write(found.table, Path(args.out), format)
        print(f"wrote {found.table.num_rows:,} rows to {args.out}", file=sys.stderr)
    else:
        print(tables.render(found.table, format))
    if found.truncated:
        rows = found.table.num_rows
        print(f"the answer is cut after {rows:,} rows: raise --max-rows, or ask for less (256 MiB are the most)", file=sys.stderr)  # fmt: skip  # noqa: E501
    return 0


def _asked(args: argparse.Namespace, opened: Lake, parameters: dict[str, Any]) -> QueryResult:
    from lake.access import audit
    from lake.sql import saved_queries
    from lake.sql.sandbox import pool

    limit = pool.TIMEOUT_SECONDS if args.timeout is None else args.timeout
    rows = args.max_rows if args.max_rows is not None else None if args.out else pool.MOST_ROWS
    asking = pool.Pool(opened)
    facts: dict[str, Any] = {"user": audit.os_user()}
    try:
        more = _neighbours(opened, args.query, parameters)
        found = asking.run(args.query, parameters, timeout=limit, max_rows=rows, **more)
        facts |= {"rows": found.table.num_rows, "seconds": found.seconds, "truncated": found.truncated}
        return found
    except LakeloopError as error:
        facts["error"] = str(error)
        raise
    finally:
        asking.close()
        _note(opened, saved_queries.entry(args.query, parameters, **facts))


def _neighbours(opened: Lake, text: str, parameters: dict[str, Any]) -> dict[str, Any]:
    if "near" not in text.lower():  # what finds them takes a while to import
        return {}
    from embeddings.search import near

    return near.extras(opened, text, parameters)


def _note(opened: Lake, entry: dict[str, Any]) -> None:
    """In the audit log; a lake one may only read is asked all the same, and told so."""
    from lake.access import audit

    try:
        opened.insert("audit", audit.rows_to_table([entry]))
    except (LakeloopError, OSError) as error:
        print(f"lakeloop: the query is not in the audit log: {error}", file=sys.stderr)


def _save(args: argparse.Namespace) -> int:
    from lake.access import audit
    from lake.sql import saved_queries

    opened = open_lake(args)
    made = saved_queries.save(
        opened, args.name, args.query, _parameters(args.param), args.description, replacing=args.replace
    )
    audit.record(opened, "query save", made.name, detail={"sql": made.sql[: saved_queries.LOGGED_CHARACTERS]})
    return output(args, made.as_dict(), f"saved {made.name}; run it with: lakeloop sql --saved {made.name}")


def _list(args: argparse.Namespace) -> int:
    from lake.sql import saved_queries

    found = saved_queries.list(open_lake(args))
    lines = [f"{one.name:<24} {one.description or ' '.join(one.sql.split())[:80]}" for one in found]
    return output(args, [one.as_dict() for one in found], "\n".join(lines) or "no query is saved yet")


def _show(args: argparse.Namespace) -> int:
    from lake.sql import saved_queries

    one = saved_queries.get(open_lake(args), args.name)
    given = [f"-- ${name} = {json.dumps(value, ensure_ascii=False)}" for name, value in one.parameters.items()]
    said = [f"-- {line}" for line in (one.description or "").splitlines()]
    return output(args, one.as_dict(), "\n".join([*said, *given, one.sql]))


def _delete(args: argparse.Namespace) -> int:
    from lake.access import audit
    from lake.sql import saved_queries

    opened = open_lake(args)
    saved_queries.delete(opened, args.name)
    audit.record(opened, "query delete", args.name)
    return output(args, {"name": args.name}, f"deleted {args.name}")


def _history(args: argparse.Namespace) -> int:
    from lake.sql import saved_queries

    found = saved_queries.history(open_lake(args), args.most)
    lines = []
    for one in found:
        end = "failed" if one.error else f"{one.rows:,} rows" if one.rows is not None else ""
        moment = one.timestamp.strftime("%Y-%m-%d %H:%M:%S")
        lines.append(f"{moment}  {one.who or '-':<16} {end:>14}  {' '.join(one.sql.split())[:90]}")
    return output(args, [one.as_dict() for one in found], "\n".join(lines) or "nothing was asked yet")


def _parameters(given: list[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in given or ():
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise BadInput(f"--param {text!r:.120}: write NAME=VALUE, for $NAME in the query")
        try:
            found[name] = json.loads(value, parse_constant=str)
        except ValueError:
            found[name] = value
    return found
