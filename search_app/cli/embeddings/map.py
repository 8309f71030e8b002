"""map, outliers: the lake in two dimensions, and what in it is like nothing else."""

from __future__ import annotations

import argparse
from typing import Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output, progress


def register(add: Add) -> None:
    p = add("map", _map, "project the lake, or a node of a tree, to two dimensions")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--node", metavar="TREE/PATH", help="only this node's images")
    what.add_argument("--where", metavar="SQL", help="only images that pass")
    what.add_argument("--place", metavar="MAP", help="place new images on this map; the old ones stay where they are")
    what.add_argument("--list", action="store_true", help="the maps there are, the newest first")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")
    p.add_argument("--seed", type=int, default=0)

    p = add("outliers", _outliers, "rank the images that are far from everything known")
    p.add_argument("--where", metavar="SQL", help="only images that pass")
    of = p.add_mutually_exclusive_group()
    of.add_argument("--against", metavar="SLICE", help="far from this slice: what training has not seen")
    of.add_argument("--per", choices=("class",), help="far from those answered alike")
    p.add_argument("--method", choices=("knn", "density"), default="knn", help="default: knn")
    p.add_argument("-k", type=int, default=10, metavar="N", help="neighbours to be far from (default 10)")
    p.add_argument("--limit", type=int, default=100, metavar="N", help="number of results (default 100)")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")


def _map(args: argparse.Namespace) -> int:
    from lake.access import audit

    if (args.place or args.list) and (args.embedder or args.seed):
        raise BadInput("--embedder and --seed belong to a new map; a map that is there keeps its own")
    if args.list:
        return _list(args)
    from embeddings.maps import maps

    opened = open_lake(args)
    if args.place:
        placed = maps.place(opened, args.place)
        audit.record(opened, "map place", args.place, detail={"placed": placed})
        return output(args, {"map": args.place, "placed": placed}, f"map {args.place}: {placed:,} new images placed")
    import time

    started = time.perf_counter()
    with progress(args, "%", 100) as count:
        shown = 0

        def tell(share: float) -> None:
            nonlocal shown
            count(int(100 * share) - shown)
            shown = int(100 * share)

        made = maps.make(
            opened, embedder=args.embedder, where=args.where, node=args.node, seed=args.seed, progress=tell
        )
    seconds = time.perf_counter() - started
    audit.record(opened, "map", made.id, detail={"node": args.node, "where": args.where, "seed": args.seed})
    fitted = "" if made.fitted == made.size else f", fitted on {made.fitted:,} and the rest placed"
    return output(args, _facts(made) | {"seconds": seconds}, f"map {made.id}: {made.size:,} images ({made.embedder}, "
                  f"{made.method}{fitted}, {seconds:.1f} s)")  # fmt: skip


def _list(args: argparse.Namespace) -> int:
    from embeddings.maps import maps

    found = maps.list(open_lake(args))
    lines = [
        f"{one.id}  {one.size:>9,} images  {one.created_at:%Y-%m-%d %H:%M}  {one.embedder}"
        + (f"  node {one.node}" if one.node else "")
        + (f"  where {one.where}" if one.where else "")
        for one in found
    ]
    return output(args, [_facts(one) for one in found], "\n".join(lines) or "no maps yet; make one with: lakeloop map")


def _facts(made: Any) -> dict[str, Any]:
    from lake.sql import tables

    facts: dict[str, Any] = tables.plain({name: getattr(made, name) for name in made.__dataclass_fields__})
    facts["map"] = facts.pop("id")
    return facts


def _outliers(args: argparse.Namespace) -> int:
    from embeddings.discovery.outliers import outliers
    from lake.sql import tables

    found = outliers(
        open_lake(args),
        embedder=args.embedder,
        where=args.where,
        against=args.against,
        per=args.per,
        method=args.method,
        k=args.k,
        limit=args.limit,
    )
    return output(args, {"results": tables.rows(found)}, tables.text(found))
