"""cluster: builds cluster trees, splits their nodes, assigns new images to them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.foreground import add_detach, run_job
from search_app.cli.terminal import Add, open_lake, output

if TYPE_CHECKING:
    from collections.abc import Iterator

METHODS = ("auto", "kmeans", "hdbscan", "evoc")


def register(add: Add) -> None:
    p = add("cluster", _cluster, "cluster the lake, or split a node of a tree", writes=True)
    scope = p.add_mutually_exclusive_group()
    scope.add_argument("--node", metavar="TREE/PATH", help="split this node: cluster its images again")
    scope.add_argument("--where", metavar="SQL", help="only images that pass")
    scope.add_argument("--slice", metavar="NAME[@VERSION]", help="only images of this slice")
    p.add_argument("--method", choices=METHODS, default="auto")
    p.add_argument("-k", type=int, metavar="N", help="number of k-means clusters")
    p.add_argument("--min-cluster-size", type=int, metavar="N", help="smallest cluster of HDBSCAN and EVoC")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--embedder", metavar="NAME")
    p.add_argument(
        "--words", metavar="FILE", help="file of names for nodes, one a line; needs an embedder with text (CLIP)"
    )
    add_detach(p)

    # The subcommand is optional: `lakeloop cluster --lake L` clusters.
    to = p.add_subparsers(title="commands", metavar="COMMAND")
    p = add("assign", _assign, "assign images that came later to the nodes of a tree", to, writes=True)
    p.add_argument("--tree", metavar="TREE", required=True)
    p = add("volume", _volume, "predictions and errors of the nodes of a tree by day", to)
    p.add_argument("--tree", metavar="TREE", required=True)
    p = add("sweep", _sweep, "try other smallest cluster sizes without saving", to)
    p.add_argument("--node", metavar="TREE/PATH", required=True)
    p.add_argument(
        "--size", type=int, action="append", metavar="N", help="a smallest cluster size to try; repeat for more"
    )
    p.add_argument("--seed", type=int, default=0)
    p = add("compare", _compare, "try other methods without saving", to)
    p.add_argument("--node", metavar="TREE/PATH", required=True)
    p.add_argument("--method", choices=METHODS, action="append", required=True, help="a method to try; repeat for more")
    p.add_argument("-k", type=int, metavar="N", help="number of k-means clusters")
    p.add_argument("--min-cluster-size", type=int, metavar="N")
    p.add_argument("--seed", type=int, default=0)
    p = add("rename", _rename, "rename a node", to, writes=True)
    p.add_argument("--node", metavar="TREE/PATH", required=True)
    p.add_argument("name", metavar="NAME", help="the new name; '' removes it")
    p = add("uncut", _uncut, "remove all nodes below a node", to, writes=True)
    p.add_argument("--node", metavar="TREE/PATH", required=True)
    add("list", _list, "list all trees, newest first", to)


def _cluster(args: argparse.Namespace) -> int:
    from lake.sql import tables

    lake = open_lake(args)
    names = ("embedder", "where", "slice", "node", "method", "k", "seed", "min_cluster_size")
    arguments = {name: getattr(args, name) for name in names} | {"words": _lines(args.words) if args.words else None}
    with _stages() as say:
        result = run_job(args, lake, "cluster", arguments, lambda progress: say(progress.stage))
    if result is None:
        return 0
    lines = [
        f"tree {result.tree} ({result.embedder}, {result.method}, {result.seconds:.1f} s)",
        "node          images  compactness  wrong  medoid        suggested name",
    ]
    for node in result.nodes:
        error_rate = f"{node.summary.wrong / node.summary.known:.0%}" if node.summary.known else "-"
        name = "noise" if node.noise else node.suggested or ""
        lines.append(
            f"{result.tree}/{node.path:<6}{node.size:>7,}  {node.compactness:>11.2f}  {error_rate:>5}  "
            f"{node.medoids[0][:12]}  {name}"
        )
    facts = {
        "tree": result.tree,
        "embedder": result.embedder,
        "method": result.method,
        "nodes": [tables.plain(node.facts()) for node in result.nodes],
        "remark": result.remark,
        "seconds": result.seconds,
    }
    return output(args, facts, "\n".join(lines))


def _assign(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from embeddings.clusters.assign import assign
    from lake.access import audit

    lake = open_lake(args)
    with _stages() as say:
        result = assign(lake, args.tree, progress=say)
    audit.record(lake, "cluster assign", result.tree, detail={"images": result.images, "none": result.none})
    lines = [f"{result.images:,} new images in tree {result.tree}; {result.none:,} of them fit no cluster of a node"]
    if result.without_vector:
        lines.append(f"{result.without_vector:,} images have no vector yet and are not assigned; run: lakeloop embed")
    lines += [f"{result.tree}/{path:<6}{count:>9,}" for path, count in result.nodes.items()]
    return output(args, asdict(result), "\n".join(lines))


def _volume(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from embeddings.clusters.assign import volume
    from lake.sql import tables

    days = volume(open_lake(args), args.tree)
    lines = ["node    day         predictions  assigned  error rate"]
    for day in days:
        rate = "-" if day.error_rate is None else f"{day.error_rate:.1%}"
        lines.append(f"{day.node:<6}  {day.day}  {day.predictions:>11,}  {day.assigned:>8,}  {rate:>10}")
    return output(args, {"tree": args.tree, "days": [tables.plain(asdict(day)) for day in days]}, "\n".join(lines))


def _sweep(args: argparse.Namespace) -> int:
    from embeddings.clusters.cuts import sweep

    lake = open_lake(args)
    with _stages() as say:
        cuts = sweep(lake, node=args.node, sizes=args.size, seed=args.seed, progress=say)
    return _cuts(args, cuts)


def _compare(args: argparse.Namespace) -> int:
    from embeddings.clusters.cuts import compare

    lake = open_lake(args)
    with _stages() as say:
        cuts = compare(
            lake,
            args.node,
            args.method,
            k=args.k,
            seed=args.seed,
            min_cluster_size=args.min_cluster_size,
            progress=say,
        )
    return _cuts(args, cuts)


def _cuts(args: argparse.Namespace, cuts: list[Any]) -> int:
    from dataclasses import asdict

    lines = ["method   clusters  noise  largest  persistence  agreement  parameters"]
    for cut in cuts:
        persistence, agreement = (f"{x:.2f}" if x is not None else "-" for x in (cut.persistence, cut.agreement))
        params = ", ".join(f"{name} {x}" for name, x in cut.params.items())
        lines.append(
            f"{cut.method:<9}{cut.clusters:>8,}  {cut.noise_share:>5.0%}  {cut.largest_share:>7.0%}  "
            f"{persistence:>11}  {agreement:>9}  {params}"
        )
    return output(args, {"node": args.node, "cuts": [asdict(cut) for cut in cuts]}, "\n".join(lines))


def _rename(args: argparse.Namespace) -> int:
    from embeddings.clusters.trees import rename
    from lake.access import audit

    lake = open_lake(args)
    rename(lake, args.node, args.name)
    audit.record(lake, "cluster rename", args.node, detail={"name": args.name})
    return output(
        args,
        {"node": args.node, "name": args.name.strip() or None},
        f"{args.node} has the name {args.name.strip() or '-'}",
    )


def _uncut(args: argparse.Namespace) -> int:
    from embeddings.clusters.trees import uncut
    from lake.access import audit

    lake = open_lake(args)
    removed = uncut(lake, args.node)
    audit.record(lake, "cluster uncut", args.node, detail={"nodes": removed})
    return output(args, {"node": args.node, "nodes": removed}, f"{removed:,} nodes below {args.node} removed")


def _list(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from embeddings.clusters.trees import trees
    from lake.sql import tables

    every_tree = trees(open_lake(args))
    lines = [
        f"{tree.tree}  {tree.size:>9,} images  {tree.nodes:>5,} nodes  {tree.created_at:%Y-%m-%d %H:%M}  "
        f"{tree.name or tree.where or tree.slice or 'all images'}"
        for tree in every_tree
    ]
    text = "\n".join(lines) or "no trees yet; create one with: lakeloop cluster"
    return output(args, {"trees": [tables.plain(asdict(tree)) for tree in every_tree]}, text)


@contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """Shows the current stage: all stages on one line of a terminal; elsewhere only stages that take a minute."""
    interactive = sys.stderr.isatty()

    def show(stage: str) -> None:
        if interactive:
            print(f"\r\x1b[K{stage} ...", end="", file=sys.stderr, flush=True)
        elif "compiles" in stage:
            print(stage, file=sys.stderr, flush=True)

    yield show
    if interactive:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from error
    if not lines:
        raise BadInput(f"{path} has no words")
    return lines
