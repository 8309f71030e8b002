"""map, outliers: projects the lake to two dimensions, and ranks unusual images."""

from __future__ import annotations

import argparse
from typing import Any

from lake.errors import BadInput
from search_app.cli.foreground import add_detach, run_job
from search_app.cli.terminal import Add, open_lake, output


def register(add: Add) -> None:
    p = add("map", _map, "project the lake, or a node of a tree, to two dimensions", writes=True)
    scope = p.add_mutually_exclusive_group()
    scope.add_argument("--node", metavar="TREE/PATH", help="only images of this node")
    scope.add_argument("--where", metavar="SQL", help="only images that pass")
    scope.add_argument("--place", metavar="MAP", help="place new images on this map without moving the others")
    scope.add_argument("--list", action="store_true", help="list the maps, newest first")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")
    p.add_argument("--seed", type=int, default=0)
    add_detach(p)

    p = add("outliers", _outliers, "rank images by their distance from others")
    p.add_argument("--where", metavar="SQL", help="only images that pass")
    reference = p.add_mutually_exclusive_group()
    reference.add_argument("--against", metavar="SLICE", help="distance from this slice, for example the training data")
    reference.add_argument("--per", choices=("class",), help="distance from images with the same predicted label")
    p.add_argument("--method", choices=("knn", "density"), default="knn", help="default: knn")
    p.add_argument("-k", type=int, default=10, metavar="N", help="number of neighbours to measure (default 10)")
    p.add_argument("--limit", type=int, default=100, metavar="N", help="number of results (default 100)")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")


def _map(args: argparse.Namespace) -> int:
    from lake.access import audit

    if (args.place or args.list) and (args.embedder or args.seed or args.detach):
        raise BadInput("--embedder, --seed and --detach belong to a new map; give them without --place and --list")
    if args.list:
        return _list(args)
    lake = open_lake(args)
    if args.place:
        from embeddings.maps import maps

        placed = maps.place(lake, args.place)
        audit.record(lake, "map place", args.place, detail={"placed": placed})
        return output(args, {"map": args.place, "placed": placed}, f"map {args.place}: {placed:,} new images placed")
    import time

    started = time.perf_counter()
    scope = {"where": args.where, "node": args.node}
    map_ = run_job(args, lake, "map", {"embedder": args.embedder, "seed": args.seed, **scope})
    if map_ is None:
        return 0
    seconds = time.perf_counter() - started
    fitted = "" if map_.fitted == map_.size else f", fitted on {map_.fitted:,} and the rest placed"
    return output(args, _facts(map_) | {"seconds": seconds}, f"map {map_.id}: {map_.size:,} images ({map_.embedder}, "
                  f"{map_.method}{fitted}, {seconds:.1f} s)")  # fmt: skip


def _list(args: argparse.Namespace) -> int:
    from embeddings.maps import maps

    every_map = maps.list(open_lake(args))
    lines = [
        f"{map_.id}  {map_.size:>9,} images  {map_.created_at:%Y-%m-%d %H:%M}  {map_.embedder}"
        + (f"  node {map_.node}" if map_.node else "")
        + (f"  where {map_.where}" if map_.where else "")
        for map_ in every_map
    ]
    return output(
        args, [_facts(map_) for map_ in every_map], "\n".join(lines) or "no maps yet; create one with: lakeloop map"
    )


def _facts(map_: Any) -> dict[str, Any]:
    from lake.sql import tables

    facts: dict[str, Any] = tables.plain({name: getattr(map_, name) for name in map_.__dataclass_fields__})
    facts["map"] = facts.pop("id")
    return facts


def _outliers(args: argparse.Namespace) -> int:
    from embeddings.discovery.outliers import outliers
    from lake.sql import tables

    rows = outliers(
        open_lake(args),
        embedder=args.embedder,
        where=args.where,
        against=args.against,
        per=args.per,
        method=args.method,
        k=args.k,
        limit=args.limit,
    )
    return output(args, {"results": tables.rows(rows)}, tables.text(rows))
