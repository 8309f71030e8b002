"""search: finds the images most similar to an image, a text or ids."""

from __future__ import annotations

import argparse

from search_app.cli.terminal import Add, full_ids, open_lake, output


def register(add: Add) -> None:
    p = add("search", _search, "find the images most similar to an example")
    example = p.add_mutually_exclusive_group(required=True)
    example.add_argument("--image", metavar="FILE")
    example.add_argument(
        "--id",
        action="append",
        metavar="ID",
        help="id of an image or prediction, or its beginning; repeat to average",
    )
    example.add_argument("--text", metavar="T", help="a text; needs an embedder with text (CLIP)")
    p.add_argument("-k", type=int, default=10, metavar="N", help="number of results (default 10)")
    p.add_argument("--where", metavar="SQL", help="a filter on samples, applied before the search")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")
    p.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="an additional column of samples in the results; repeat for more",
    )


def _search(args: argparse.Namespace) -> int:
    from embeddings.search.search import search

    lake = open_lake(args)
    rows = search(
        lake,
        image=args.image,
        ids=full_ids(lake, args.id or []),
        text=args.text,
        embedder=args.embedder,
        k=args.k,
        where=args.where,
        columns=args.column or (),
    )
    from lake.sql import tables

    return output(args, {"results": tables.rows(rows)}, tables.text(rows))
