"""isolate: active search, page by page, or by itself where a known label answers."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output

if TYPE_CHECKING:
    from embeddings.search.saved_searches import SavedSearch
    from lake.storage.store import Lake


def register(add: Add) -> None:
    p = add("isolate", _isolate, "find all images of one kind: mark a page, get the next one")
    p.add_argument("--like", action="append", metavar="ID", help="begin with this image or prediction; again for more")
    p.add_argument("--search", metavar="SEARCH", help="go on with a search")
    p.add_argument("--list", action="store_true", help="every search")
    p.add_argument("--where", metavar="SQL", help="look only among images that pass")
    p.add_argument("--node", metavar="TREE/PATH", help="look only in this cluster")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")
    p.add_argument("--name", metavar="NAME", help="what the search is called")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--yes", action="append", default=[], metavar="ID", help="an image of the kind; again for more")
    p.add_argument("--no", action="append", default=[], metavar="ID", help="an image not of the kind; again for more")
    p.add_argument("--rest-no", action="store_true", help="the others of the page are not of the kind")
    p.add_argument("--accept", metavar="TREE/PATH", help="all of this cluster is of the kind")
    p.add_argument("--refuse", metavar="TREE/PATH", help="nothing of this cluster is of the kind")
    p.add_argument("--undo", action="store_true", help="take the last page's or cluster's marks back")
    p.add_argument("--page", type=int, default=24, metavar="N", help="images a page (default 24)")
    p.add_argument("--oracle-column", metavar="NAME", help="for measuring: a column of predictions, or true_label, answers; the kind is what it says of the first example")  # fmt: skip  # noqa: E501
    p.add_argument("--until", type=float, default=0.9, metavar="SHARE", help="with an oracle: of the kind found (default 0.9)")  # fmt: skip  # noqa: E501


def _isolate(args: argparse.Namespace) -> int:
    from embeddings.search import saved_searches
    from lake.access import audit
    from lake.sql import tables

    if sum((args.list, args.search is not None, args.like is not None)) != 1:
        raise BadInput("give --like ID to begin a search, --search SEARCH to go on with one, or --list")
    if args.page < 1:
        raise BadInput(f"--page is {args.page}; it must be at least 1")
    opened = open_lake(args)
    if args.list:
        every = saved_searches.list(opened)
        lines = [
            f"{s.id}  {s.created_at:%Y-%m-%d %H:%M}  {s.found:,} found, {s.looked:,} looked at  {s.name or ''}".rstrip()
            for s in every
        ]
        facts = [tables.plain(vars(s)) for s in every]
        return output(args, facts, "\n".join(lines) or "no searches yet; begin one with: lakeloop isolate --like ID")
    if args.like is not None:
        search = saved_searches.start(
            opened,
            examples=args.like,
            node=args.node,
            where=args.where,
            embedder=args.embedder,
            name=args.name,
            seed=args.seed,
        )
        audit.record(opened, "isolate", search.id, detail={"like": args.like, "node": args.node, "where": args.where})
    else:
        if args.where or args.node or args.embedder:
            raise BadInput("a search keeps its own --where, --node and --embedder: give them with --like")
        search = saved_searches.resume(opened, args.search)
    if args.oracle_column is not None:
        return _by_oracle(args, opened, search)
    _mark(args, search)
    progress = search.progress()
    page = search.page(args.page)
    state = {"search": search.id, "page": [*page], "found": [*search.positives()], "progress": vars(progress)}
    text = [f"search {search.id}: {progress.found:,} found, {progress.looked:,} looked at. {progress.advice}", *page]
    return output(args, state, "\n".join(text))


def _mark(args: argparse.Namespace, search: SavedSearch) -> None:
    if args.undo and not search.undo():
        print("there is nothing to take back", file=sys.stderr)
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
    """Marks every page by what is known, until the share asked for is found."""
    if not 0 < args.until <= 1:
        raise BadInput(f"--until is {args.until}; it is a share, above 0 to 1")
    known = _known(lake, args.oracle_column)
    kind = known.get(search.positives()[0])
    if kind is None:
        raise BadInput(f"{args.oracle_column} says nothing of the first example")
    of = sum(known.get(i) == kind for i in search.images())
    started = time.perf_counter()
    rounds: list[float] = []
    while len(search.positives()) < args.until * of:
        before = time.perf_counter()
        page = search.page(args.page)
        if not page:
            break
        yes = [i for i in page if known.get(i) == kind]
        search.mark(yes, [i for i in page if known.get(i) != kind])
        rounds.append(time.perf_counter() - before)
    progress = search.progress()
    facts: dict[str, Any] = {
        "search": search.id,
        "kind": str(kind),
        "of": of,
        "found": progress.found,
        "looked": progress.looked,
        "share": progress.looked / max(1, progress.images),
        "pages": progress.pages,
        "progress": vars(progress),
        "seconds": time.perf_counter() - started,
        "round_seconds": sorted(rounds)[len(rounds) // 2] if rounds else None,
    }
    text = (
        f"search {search.id}: {progress.found:,} of {of:,} {kind} found by looking at {progress.looked:,} of "
        f"{progress.images:,} images ({facts['share']:.1%}), {progress.pages} pages"
    )
    return output(args, facts, text)


def _known(lake: Lake, column: str) -> dict[str, Any]:
    """image_id -> what the column says of the image (of several rows, the newest)."""
    from lake.sql import connections

    if column == "true_label":
        rows = connections.query(
            lake, "SELECT image_id, label AS value FROM labels_current WHERE task = 'classification'"
        )
    else:
        names = [f.name for f in lake.dataset("predictions").schema if not f.name.startswith("emb_")]
        if column not in names:
            raise BadInput(f"predictions has no column {column!r}; it has {', '.join(names)}, or true_label")
        rows = connections.query(
            lake,
            f"""
            SELECT image_id, "{column}" AS value FROM predictions
            QUALIFY row_number() OVER (PARTITION BY image_id
                                       ORDER BY timestamp DESC NULLS LAST, ingested_at DESC) = 1""",
        )
    return dict(zip(rows["image_id"].to_pylist(), rows["value"].to_pylist(), strict=True))
