"""sql, query save, list, show, delete, history: runs SQL on the lake and keeps named queries."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, LakeloopError
from search_app.cli.terminal import Add, number, open_lake, output

if TYPE_CHECKING:
    from lake.sql.sandbox.results import Preparation, QueryResult
    from lake.storage.store import Lake


def register(add: Add, group: Any) -> None:
    p = add("sql", _sql, "run one SELECT on the tables and views of the lake", writes=True)
    p.add_argument("query", metavar="SELECT", nargs="?", help="$NAME stands for the value of a parameter")
    p.add_argument("--saved", metavar="NAME", help="run this saved query instead")
    p.add_argument("--param", action="append", metavar="NAME=VALUE", help="a parameter: a number, true, false, null, a JSON list, else text")  # fmt: skip  # noqa: E501
    p.add_argument("--format", choices=("table", "json", "csv", "parquet"))
    p.add_argument("--out", metavar="FILE")
    p.add_argument("--timeout", type=number, metavar="S", help="most seconds; default: 30")
    p.add_argument("--max-rows", type=int, metavar="N", help="most rows; default: 100,000, with --out: all")

    p = add("save", _save, "save a query under a name", group, writes=True)
    p.add_argument("name", metavar="NAME")
    p.add_argument("query", metavar="SELECT")
    p.add_argument("--param", action="append", metavar="NAME=VALUE", help="the default value of a parameter")
    p.add_argument("--description", metavar="TEXT")
    p.add_argument("--replace", action="store_true", help="replace the saved query of this name")

    add("list", _list, "list the saved queries", group)

    p = add("show", _show, "show a saved query", group)
    p.add_argument("name", metavar="NAME")

    p = add("delete", _delete, "delete a saved query", group, writes=True)
    p.add_argument("name", metavar="NAME")

    p = add("history", _history, "list the queries that ran, newest first", group)
    p.add_argument("--most", type=int, default=50, metavar="N", help="number of queries; default: 50")


def _sql(args: argparse.Namespace) -> int:
    from pathlib import Path

    from lake.sql import saved_queries, tables

    if (args.query is None) == (args.saved is None):
        raise BadInput("give a SELECT, or --saved NAME for a saved query")
    format = args.format or ("json" if args.json else "table")
    if args.json and format != "json":
        raise BadInput("--json and --format contradict each other: give only one")
    if format == "parquet" and not args.out:
        raise BadInput("the format parquet needs --out FILE")
    lake = open_lake(args)
    parameters: dict[str, Any] = {}
    if args.saved is not None:
        saved = saved_queries.get(lake, args.saved)
        args.query, parameters = saved.sql, dict(saved.parameters)
    parameters |= _parameters(args.param)
    result = _run(args, lake, parameters)
    if args.out:
        tables.write(result.table, Path(args.out), format)
        print(f"wrote {result.table.num_rows:,} rows to {args.out}", file=sys.stderr)
    else:
        print(tables.render(result.table, format))
    if result.truncated:
        rows = result.table.num_rows
        print(f"the result is cut after {rows:,} rows: raise --max-rows or select less (at most 256 MiB)", file=sys.stderr)  # fmt: skip  # noqa: E501
    return 0


def _run(args: argparse.Namespace, lake: Lake, parameters: dict[str, Any]) -> QueryResult:
    from lake.access import audit
    from lake.sql import saved_queries
    from lake.sql.sandbox import pool

    limit = pool.TIMEOUT_SECONDS if args.timeout is None else args.timeout
    rows = args.max_rows if args.max_rows is not None else None if args.out else pool.MOST_ROWS
    queries = pool.Pool(lake)
    facts: dict[str, Any] = {"user": audit.os_user()}
    try:
        prepare = _neighbours(lake, args.query, parameters)
        result = queries.run(args.query, parameters, timeout=limit, max_rows=rows, prepare=prepare)
        facts |= {"rows": result.table.num_rows, "seconds": result.seconds, "truncated": result.truncated}
        return result
    except LakeloopError as error:
        facts["error"] = str(error)
        raise
    finally:
        queries.close()
        _record(lake, saved_queries.entry(args.query, parameters, **facts))


def _neighbours(lake: Lake, text: str, parameters: dict[str, Any]) -> Preparation | None:
    if "near" not in text.lower():  # the import is slow
        return None
    from embeddings.search import near

    return near.preparation(lake, text, parameters)


def _record(lake: Lake, entry: dict[str, Any]) -> None:
    """Records the query in the audit log. On a read-only lake it only prints a message."""
    from lake.access import audit

    try:
        lake.insert("audit", audit.rows_to_table([entry]))
    except (LakeloopError, OSError) as error:
        read_only = isinstance(error, OSError) and audit.is_read_only(error)
        reason = "the lake can only be read" if read_only else str(error)
        print(f"lakeloop: the query is not in the audit log: {reason}", file=sys.stderr)


def _save(args: argparse.Namespace) -> int:
    from lake.access import audit
    from lake.sql import saved_queries

    lake = open_lake(args)
    query = saved_queries.save(
        lake, args.name, args.query, _parameters(args.param), args.description, replacing=args.replace
    )
    audit.record(lake, "query save", query.name, detail={"sql": query.sql[: saved_queries.LOGGED_CHARACTERS]})
    return output(args, query.as_dict(), f"saved {query.name}; run it with: lakeloop sql --saved {query.name}")


def _list(args: argparse.Namespace) -> int:
    from lake.sql import saved_queries

    queries = saved_queries.list(open_lake(args))
    lines = [f"{q.name:<24} {q.description or ' '.join(q.sql.split())[:80]}" for q in queries]
    return output(args, [query.as_dict() for query in queries], "\n".join(lines) or "no saved queries yet")


def _show(args: argparse.Namespace) -> int:
    from lake.sql import saved_queries

    query = saved_queries.get(open_lake(args), args.name)
    values = [f"-- ${name} = {json.dumps(value, ensure_ascii=False)}" for name, value in query.parameters.items()]
    description = [f"-- {line}" for line in (query.description or "").splitlines()]
    return output(args, query.as_dict(), "\n".join([*description, *values, query.sql]))


def _delete(args: argparse.Namespace) -> int:
    from lake.access import audit
    from lake.sql import saved_queries

    lake = open_lake(args)
    saved_queries.delete(lake, args.name)
    audit.record(lake, "query delete", args.name)
    return output(args, {"name": args.name}, f"deleted {args.name}")


def _history(args: argparse.Namespace) -> int:
    from lake.sql import saved_queries

    entries = saved_queries.history(open_lake(args), args.most)
    lines = []
    for entry in entries:
        end = "failed" if entry.error else f"{entry.rows:,} rows" if entry.rows is not None else ""
        moment = entry.timestamp.strftime("%Y-%m-%d %H:%M:%S")
        lines.append(f"{moment}  {entry.who or '-':<16} {end:>14}  {' '.join(entry.sql.split())[:90]}")
    return output(args, [entry.as_dict() for entry in entries], "\n".join(lines) or "no queries yet")


def _parameters(texts: list[str] | None) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise BadInput(f"--param {text!r:.120}: write NAME=VALUE, for $NAME in the query")
        try:
            parameters[name] = json.loads(value, parse_constant=str)
        except ValueError:
            parameters[name] = value
    return parameters
