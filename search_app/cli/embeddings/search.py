"""search: from an odd image to its like."""

from __future__ import annotations

import argparse

from search_app.cli.terminal import Add, open_lake, output


def register(add: Add) -> None:
    p = add("search", _search, "find the images most like an example")
    example = p.add_mutually_exclusive_group(required=True)
    example.add_argument("--image", metavar="FILE")
    example.add_argument(
        "--id", action="append", metavar="ID", help="an image_id or prediction_id; several are averaged"
    )
    example.add_argument("--text", metavar="T", help="with an embedder that can (CLIP)")
    p.add_argument("-k", type=int, default=10, metavar="N", help="number of results (default 10)")
    p.add_argument("--where", metavar="SQL", help="filter on predictions, applied before neighbours are chosen")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")
    p.add_argument("--column", action="append", metavar="NAME", help="one more column of predictions in the results")


def _search(args: argparse.Namespace) -> int:
    from embeddings.search.search import search

    found = search(
        open_lake(args),
        image=args.image,
        ids=args.id or (),
        text=args.text,
        embedder=args.embedder,
        k=args.k,
        where=args.where,
        columns=args.column or (),
    )
    from lake.sql import tables

    return output(args, {"results": tables.rows(found)}, tables.text(found))
