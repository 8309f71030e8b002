"""map, outliers: the lake in two dimensions, and what in it is like nothing else."""

from __future__ import annotations

import argparse
from typing import Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, answer, open_lake, progress


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


def _map(a: argparse.Namespace) -> int:
    from lake.access import audit

    if (a.place or a.list) and (a.embedder or a.seed):
        raise BadInput("--embedder and --seed belong to a new map; a map that is there keeps its own")
    if a.list:
        return _list(a)
    from embeddings.maps import maps

    opened = open_lake(a)
    if a.place:
        placed = maps.place(opened, a.place)
        audit.record(opened, "map place", a.place, detail={"placed": placed})
        return answer(a, {"map": a.place, "placed": placed}, f"map {a.place}: {placed:,} new images placed")
    import time

    started = time.perf_counter()
    with progress(a, "%", 100) as count:
        shown = 0

        def tell(share: float) -> None:
            nonlocal shown
            count(int(100 * share) - shown)
            shown = int(100 * share)

        made = maps.make(opened, embedder=a.embedder, where=a.where, node=a.node, seed=a.seed, progress=tell)
    seconds = time.perf_counter() - started
    audit.record(opened, "map", made.id, detail={"node": a.node, "where": a.where, "seed": a.seed})
    fitted = "" if made.fitted == made.size else f", fitted on {made.fitted:,} and the rest placed"
    return answer(a, _facts(made) | {"seconds": seconds}, f"map {made.id}: {made.size:,} images ({made.embedder}, "
                  f"{made.method}{fitted}, {seconds:.1f} s)")  # fmt: skip


def _list(a: argparse.Namespace) -> int:
    from embeddings.maps import maps

    found = maps.list(open_lake(a))
    lines = [
        f"{one.id}  {one.size:>9,} images  {one.created_at:%Y-%m-%d %H:%M}  {one.embedder}"
        + (f"  node {one.node}" if one.node else "")
        + (f"  where {one.where}" if one.where else "")
        for one in found
    ]
    return answer(a, [_facts(one) for one in found], "\n".join(lines) or "no maps yet; make one with: lakeloop map")


def _facts(made: Any) -> dict[str, Any]:
    from lake.sql import tables

    facts: dict[str, Any] = tables.plain({name: getattr(made, name) for name in made.__dataclass_fields__})
    facts["map"] = facts.pop("id")
    return facts


def _outliers(a: argparse.Namespace) -> int:
    from embeddings.discovery.outliers import outliers
    from lake.sql import tables

    found = outliers(
        open_lake(a),
        embedder=a.embedder,
        where=a.where,
        against=a.against,
        per=a.per,
        method=a.method,
        k=a.k,
        limit=a.limit,
    )
    return answer(a, {"results": tables.rows(found)}, tables.text(found))
