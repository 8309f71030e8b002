"""isolate: an active search, page by page, or automatic with known labels."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, full_ids, number, open_lake, output

if TYPE_CHECKING:
    from embeddings.search.saved_searches import SavedSearch
    from lake.storage.store import Lake


def register(add: Add) -> None:
    p = add("isolate", _isolate, "find all images of a kind: mark a page of candidates, get the next page", writes=True)
    p.add_argument("--like", action="append", metavar="ID", help="start with this image or prediction; repeat for more")
    p.add_argument("--search", metavar="SEARCH", help="continue this search")
    p.add_argument("--list", action="store_true", help="list all searches")
    p.add_argument("--where", metavar="SQL", help="search only images that pass")
    p.add_argument("--node", metavar="TREE/PATH", help="search only this cluster")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")
    p.add_argument("--name", metavar="NAME", help="name of the search")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--yes", action="append", default=[], metavar="ID", help="an image of the kind; repeat for more")
    p.add_argument("--no", action="append", default=[], metavar="ID", help="an image not of the kind; repeat for more")
    p.add_argument("--rest-no", action="store_true", help="all other images of the page are not of the kind")
    p.add_argument("--accept", metavar="TREE/PATH", help="all images of this cluster are of the kind")
    p.add_argument("--refuse", metavar="TREE/PATH", help="no image of this cluster is of the kind")
    p.add_argument("--undo", action="store_true", help="undo the marks of the last page or cluster")
    p.add_argument("--page", type=int, default=24, metavar="N", help="images a page (default 24)")
    p.add_argument("--oracle-column", metavar="NAME", help="to measure the search: mark by this column of samples, or by true_label; the kind is its value for the first example")  # fmt: skip  # noqa: E501
    p.add_argument("--until", type=number, default=0.9, metavar="SHARE", help="with --oracle-column: stop when this share of the kind is found (default 0.9)")  # fmt: skip  # noqa: E501


def _isolate(args: argparse.Namespace) -> int:
    from embeddings.search import saved_searches
    from lake.access import audit
    from lake.sql import tables

    if sum((args.list, args.search is not None, args.like is not None)) != 1:
        raise BadInput("give --like ID to start a search, --search SEARCH to continue one, or --list")
    if args.page < 1:
        raise BadInput(f"--page is {args.page}; it must be at least 1")
    lake = open_lake(args)
    if args.list:
        searches = saved_searches.list(lake)
        lines = [
            f"{search.id}  {search.created_at:%Y-%m-%d %H:%M}  {search.found:,} found, {search.looked:,} viewed  "
            f"{search.name or ''}".rstrip()
            for search in searches
        ]
        facts = [tables.plain(vars(search)) for search in searches]
        return output(args, facts, "\n".join(lines) or "no searches yet; start one with: lakeloop isolate --like ID")
    if args.like is not None:
        search = saved_searches.start(
            lake,
            examples=full_ids(lake, args.like),
            node=args.node,
            where=args.where,
            embedder=args.embedder,
            name=args.name,
            seed=args.seed,
        )
        audit.record(lake, "isolate", search.id, detail={"like": args.like, "node": args.node, "where": args.where})
    else:
        if args.where or args.node or args.embedder:
            raise BadInput("--where, --node and --embedder belong to a new search: give them only with --like")
        search = saved_searches.resume(lake, args.search)
    if args.oracle_column is not None:
        return _by_oracle(args, lake, search)
    _mark(args, search)
    progress = search.progress()
    page = search.page(args.page)
    state = {"search": search.id, "page": [*page], "found": [*search.positives()], "progress": vars(progress)}
    lines = [f"search {search.id}: {progress.found:,} found, {progress.looked:,} viewed. {progress.advice}", *page]
    return output(args, state, "\n".join(lines))


def _mark(args: argparse.Namespace, search: SavedSearch) -> None:
    if args.undo and not search.undo():
        print("there is nothing to undo", file=sys.stderr)
    if args.accept:
        print(f"{search.accept(args.accept):,} accepted", file=sys.stderr)
    if args.refuse:
        print(f"{search.refuse(args.refuse):,} refused", file=sys.stderr)
    no = list(args.no)
    if args.rest_no:
        no += [i for i in search.page(args.page) if i not in {*args.yes, *no}]
    if args.yes or no:
        search.mark(args.yes, no)


def _by_oracle(args: argparse.Namespace, lake: Lake, search: SavedSearch) -> int:
    """Marks each page by the known values, until the share --until is found."""
    if not 0 < args.until <= 1:
        raise BadInput(f"--until is {args.until}; it must be above 0 and at most 1")
    values = _values(lake, args.oracle_column)
    value = values.get(search.positives()[0])
    if value is None:
        raise BadInput(f"{args.oracle_column} has no value for the first example")
    total = sum(values.get(i) == value for i in search.images())
    started = time.perf_counter()
    rounds: list[float] = []
    while len(search.positives()) < args.until * total:
        before = time.perf_counter()
        page = search.page(args.page)
        if not page:
            break
        yes = [i for i in page if values.get(i) == value]
        search.mark(yes, [i for i in page if values.get(i) != value])
        rounds.append(time.perf_counter() - before)
    progress = search.progress()
    facts: dict[str, Any] = {
        "search": search.id,
        "kind": str(value),
        "of": total,
        "found": progress.found,
        "looked": progress.looked,
        "share": progress.looked / max(1, progress.images),
        "pages": progress.pages,
        "progress": vars(progress),
        "seconds": time.perf_counter() - started,
        "round_seconds": sorted(rounds)[len(rounds) // 2] if rounds else None,
    }
    text = (
        f"search {search.id}: {progress.found:,} of {total:,} {value} found after viewing {progress.looked:,} of "
        f"{progress.images:,} images ({facts['share']:.1%}), {progress.pages} pages"
    )
    return output(args, facts, text)


def _values(lake: Lake, column: str) -> dict[str, Any]:
    """image_id -> the value of the column in the newest row of the image."""
    from lake.sql import connections

    if column == "true_label":
        rows = connections.query(
            lake,
            "SELECT image_id, label AS value FROM labels_current"
            " WHERE task = 'classification' AND incomplete IS NOT TRUE",
        )
    else:
        names = [f.name for f in lake.dataset("samples").schema if not f.name.startswith("emb_")]
        if column not in names:
            raise BadInput(f"samples has no column {column!r}; it has {', '.join(names)}, or true_label")
        rows = connections.query(
            lake,
            f"""
            SELECT image_id, "{column}" AS value FROM samples
            QUALIFY row_number() OVER (PARTITION BY image_id
                                       ORDER BY timestamp DESC NULLS LAST, ingested_at DESC) = 1""",
        )
    return dict(zip(rows["image_id"].to_pylist(), rows["value"].to_pylist(), strict=True))
