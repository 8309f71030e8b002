"""search, slice: from an odd image to a named set of its like."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lake.errors import BadInput
from search_app.commands.terminal import Add, answer, open_lake, progress


def register(add: Add, slices: Any) -> None:
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

    p = add("create", _slice_create, "save a set of images under a name", slices)
    p.add_argument("name", metavar="NAME")
    how = p.add_mutually_exclusive_group(required=True)
    how.add_argument("--where", metavar="SQL")
    how.add_argument("--ids", metavar="FILE", help="one id a line; - for standard input")
    how.add_argument("--cluster", action="append", metavar="TREE/PATH", help="all of this node; again for more")
    add("list", _slice_list, "every version of every slice", slices)
    p = add("show", _slice_show, "a slice's definition and members", slices)
    p.add_argument("name", metavar="NAME[@VERSION]")
    p = add("export", _slice_export, "write a slice's images to a folder", slices)
    p.add_argument("name", metavar="NAME[@VERSION]")
    p.add_argument("--format", choices=("imagefolder",), default="imagefolder")
    p.add_argument("--out", metavar="FOLDER", required=True)


def _search(a: argparse.Namespace) -> int:
    from embeddings.search import search

    found = search(
        open_lake(a),
        image=a.image,
        ids=a.id or (),
        text=a.text,
        embedder=a.embedder,
        k=a.k,
        where=a.where,
        columns=a.column or (),
    )
    from lake import tables

    return answer(a, {"results": tables.rows(found)}, tables.text(found))


def _slice_create(a: argparse.Namespace) -> int:
    from pathlib import Path

    from lake import audit, slices, tables

    ids = None
    if a.ids:
        text = sys.stdin.read() if a.ids == "-" else _read_text(Path(a.ids))
        ids = text.split()
    opened = open_lake(a)
    made = slices.create(opened, a.name, where=a.where, ids=ids, cluster=a.cluster)
    audit.record(opened, "slice create", made.id, detail={"kind": made.kind, "definition": made.definition})
    facts = tables.plain({f: getattr(made, f) for f in made.__dataclass_fields__})
    return answer(a, facts, f"{made.id}: {made.size:,} images ({made.kind}: {made.definition})")


def _slice_list(a: argparse.Namespace) -> int:
    from lake import slices, tables

    found = slices.list(open_lake(a))
    facts = [tables.plain({f: getattr(s, f) for f in s.__dataclass_fields__}) for s in found]
    lines = [f"{s.id:<24}{s.size:>9,} images  {s.kind}: {s.definition}" for s in found]
    return answer(a, facts, "\n".join(lines) or "no slices yet; make one with: lakeloop slice create NAME --where SQL")


def _slice_show(a: argparse.Namespace) -> int:
    from lake import slices, tables

    opened = open_lake(a)
    made = slices.get(opened, a.name)
    members = slices.members(opened, made).to_pylist()
    facts = tables.plain({f: getattr(made, f) for f in made.__dataclass_fields__}) | {"image_ids": members}
    text = (
        f"{made.id}: {made.size:,} images ({made.kind}: {made.definition}), made {made.created_at:%Y-%m-%d %H:%M} UTC"
        f" at version {made.predictions_version} of predictions\n" + "\n".join(members)
    )
    return answer(a, facts, text)


def _slice_export(a: argparse.Namespace) -> int:
    from pathlib import Path

    from lake import slices

    opened = open_lake(a)
    made = slices.get(opened, a.name)
    with progress(a, "images", made.size) as count:
        written = slices.export(opened, made, Path(a.out), a.format, count)
    return answer(a, {"slice": made.id, "images": written, "out": a.out}, f"wrote {written:,} images to {a.out}")


def _read_text(path: Any) -> str:
    try:
        text: str = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}") from error
    return text
