"""cluster: a tree of what looks alike, opened node by node; new images assigned to it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output

if TYPE_CHECKING:
    from collections.abc import Iterator

METHODS = ("auto", "kmeans", "hdbscan", "evoc")


def register(add: Add) -> None:
    p = add("cluster", _cluster, "cluster the lake, open a node of a tree, or assign new images to it")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--node", metavar="TREE/PATH", help="cluster this node's images afresh")
    what.add_argument("--where", metavar="SQL", help="only images that pass")
    what.add_argument("--slice", metavar="NAME[@VERSION]", help="only images of this slice")
    p.add_argument("--method", choices=METHODS, default="auto")
    p.add_argument("-k", type=int, metavar="N", help="number of k-means clusters")
    p.add_argument("--min-cluster-size", type=int, metavar="N", help="HDBSCAN's and EVoC's smallest cluster")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--embedder", metavar="NAME")
    p.add_argument("--words", metavar="FILE", help="names for nodes, one a line, with an embedder of text (CLIP)")

    # A sub-command may be left out: `lakeloop cluster --lake L` clusters.
    to = p.add_subparsers(title="commands", metavar="COMMAND")
    p = add("assign", _assign, "assign the images that came since to a tree's nodes", to)
    p.add_argument("--tree", metavar="TREE", required=True)
    p = add("volume", _volume, "answers and errors of a tree's nodes by day", to)
    p.add_argument("--tree", metavar="TREE", required=True)
    p = add("sweep", _sweep, "what other smallest clusters would give; nothing is saved", to)
    p.add_argument("--node", metavar="TREE/PATH", required=True)
    p.add_argument("--size", type=int, action="append", metavar="N", help="a smallest cluster to try; may be repeated")
    p.add_argument("--seed", type=int, default=0)
    p = add("compare", _compare, "what other methods would give; nothing is saved", to)
    p.add_argument("--node", metavar="TREE/PATH", required=True)
    p.add_argument("--method", choices=METHODS, action="append", required=True, help="may be repeated")
    p.add_argument("-k", type=int, metavar="N", help="number of k-means clusters")
    p.add_argument("--min-cluster-size", type=int, metavar="N")
    p.add_argument("--seed", type=int, default=0)
    p = add("rename", _rename, "give a node a name", to)
    p.add_argument("--node", metavar="TREE/PATH", required=True)
    p.add_argument("name", metavar="NAME", help="'' takes it away")
    p = add("uncut", _uncut, "undo: what is below a node goes, the node stays", to)
    p.add_argument("--node", metavar="TREE/PATH", required=True)
    add("list", _list, "every tree, the newest first", to)


def _cluster(args: argparse.Namespace) -> int:
    from embeddings.clusters.drilldown import cluster
    from lake.access import audit
    from lake.sql import tables

    opened = open_lake(args)
    words = _lines(args.words) if args.words else ()
    with _stages() as say:
        made = cluster(
            opened,
            embedder=args.embedder,
            where=args.where,
            slice=args.slice,
            node=args.node,
            method=args.method,
            k=args.k,
            seed=args.seed,
            min_cluster_size=args.min_cluster_size,
            words=words,
            progress=say,
        )
    detail = {"node": args.node, "where": args.where, "slice": args.slice, "method": args.method}
    audit.record(opened, "cluster", made.tree, detail=detail)
    if made.remark:
        print(made.remark, file=sys.stderr)
    lines = [
        f"tree {made.tree} ({made.embedder}, {made.method}, {made.seconds:.1f} s)",
        "node          images  compactness  wrong  medoid        suggested name",
    ]
    for n in made.nodes:
        wrong = f"{n.summary.wrong / n.summary.known:.0%}" if n.summary.known else "-"
        name = "noise" if n.noise else n.suggested or ""
        lines.append(
            f"{made.tree}/{n.path:<6}{n.size:>7,}  {n.compactness:>11.2f}  {wrong:>5}  {n.medoids[0][:12]}  {name}"
        )
    facts = {
        "tree": made.tree,
        "embedder": made.embedder,
        "method": made.method,
        "nodes": [tables.plain(n.facts()) for n in made.nodes],
        "remark": made.remark,
        "seconds": made.seconds,
    }
    return output(args, facts, "\n".join(lines))


def _assign(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from embeddings.clusters.assign import assign
    from lake.access import audit

    opened = open_lake(args)
    with _stages() as say:
        made = assign(opened, args.tree, progress=say)
    audit.record(opened, "cluster assign", made.tree, detail={"images": made.images, "none": made.none})
    lines = [f"{made.images:,} new images in tree {made.tree}; {made.none:,} of them fit none of a node's clusters"]
    lines += [f"{made.tree}/{path:<6}{count:>9,}" for path, count in made.nodes.items()]
    return output(args, asdict(made), "\n".join(lines))


def _volume(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from embeddings.clusters.assign import volume
    from lake.sql import tables

    found = volume(open_lake(args), args.tree)
    lines = ["node    day         answers  assigned  error rate"]
    for one in found:
        rate = "-" if one.error_rate is None else f"{one.error_rate:.1%}"
        lines.append(f"{one.node:<6}  {one.day}  {one.answers:>7,}  {one.assigned:>8,}  {rate:>10}")
    return output(args, {"tree": args.tree, "days": [tables.plain(asdict(one)) for one in found]}, "\n".join(lines))


def _sweep(args: argparse.Namespace) -> int:
    from embeddings.clusters.cuts import sweep

    opened = open_lake(args)
    with _stages() as say:
        found = sweep(opened, node=args.node, sizes=args.size, seed=args.seed, progress=say)
    return _cuts(args, found)


def _compare(args: argparse.Namespace) -> int:
    from embeddings.clusters.cuts import compare

    opened = open_lake(args)
    with _stages() as say:
        found = compare(
            opened,
            args.node,
            args.method,
            k=args.k,
            seed=args.seed,
            min_cluster_size=args.min_cluster_size,
            progress=say,
        )
    return _cuts(args, found)


def _cuts(args: argparse.Namespace, found: list[Any]) -> int:
    from dataclasses import asdict

    lines = ["method   clusters  noise  largest  persistence  agreement  parameters"]
    for one in found:
        held, agreed = (f"{x:.2f}" if x is not None else "-" for x in (one.persistence, one.agreement))
        params = ", ".join(f"{name} {value}" for name, value in one.params.items())
        lines.append(
            f"{one.method:<9}{one.clusters:>8,}  {one.noise_share:>5.0%}  {one.largest_share:>7.0%}  {held:>11}  "
            f"{agreed:>9}  {params}"
        )
    return output(args, {"node": args.node, "cuts": [asdict(one) for one in found]}, "\n".join(lines))


def _rename(args: argparse.Namespace) -> int:
    from embeddings.clusters.trees import rename
    from lake.access import audit

    opened = open_lake(args)
    rename(opened, args.node, args.name)
    audit.record(opened, "cluster rename", args.node, detail={"name": args.name})
    return output(
        args,
        {"node": args.node, "name": args.name.strip() or None},
        f"{args.node} is called {args.name.strip() or '-'}",
    )


def _uncut(args: argparse.Namespace) -> int:
    from embeddings.clusters.trees import uncut
    from lake.access import audit

    opened = open_lake(args)
    went = uncut(opened, args.node)
    audit.record(opened, "cluster uncut", args.node, detail={"nodes": went})
    return output(args, {"node": args.node, "nodes": went}, f"{went:,} nodes below {args.node} are gone")


def _list(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from embeddings.clusters.trees import trees
    from lake.sql import tables

    found = trees(open_lake(args))
    lines = [
        f"{one.tree}  {one.size:>9,} images  {one.nodes:>5,} nodes  {one.created_at:%Y-%m-%d %H:%M}  "
        f"{one.name or one.where or one.slice or 'all images'}"
        for one in found
    ]
    text = "\n".join(lines) or "no trees yet; make one with: lakeloop cluster"
    return output(args, {"trees": [tables.plain(asdict(one)) for one in found]}, text)


@contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """Says what begins: on one line of a terminal, and elsewhere only what may take a minute."""
    looked_at = sys.stderr.isatty()

    def say(stage: str) -> None:
        if looked_at:
            print(f"\r\x1b[K{stage} ...", end="", file=sys.stderr, flush=True)
        elif "compiles" in stage:
            print(stage, file=sys.stderr, flush=True)

    yield say
    if looked_at:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            found = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from error
    if not found:
        raise BadInput(f"{path} has no words in it")
    return found
