"""models card, diff, export: what is known of a version as a card, two of them compared, one for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output


def register(add: Add, models: Any) -> None:
    p = add("card", _card, "a version's model card, from the record: README.md and plots", models)
    p.add_argument("name", metavar="NAME[@V]|RUN")
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="write README.md and its plots there (default: print it, without plots)"
    )

    p = add("diff", _diff, "what is different between two versions: data, recipe, metrics", models)
    p.add_argument("before", metavar="NAME[@V]|RUN")
    p.add_argument("after", metavar="NAME[@V]|RUN")

    p = add("export", _export, "a version as a file for other runtimes, kept when it answers the same", models)
    p.add_argument("name", metavar="NAME[@V]|RUN")
    p.add_argument("--onnx", action="store_true", help="as ONNX (the only format so far)")
    p.add_argument("--out", type=Path, metavar="DIR", required=True, help="model.onnx and model.json go there")
    p.add_argument("--tolerance", type=float, metavar="T", default=1e-4,
                   help="how far its numbers may be off, of 1 + their size (default: 1e-4)")  # fmt: skip


def _card(args: argparse.Namespace) -> int:
    from training.card import card

    opened = open_lake(args)
    found = card.facts(opened, args.name, answers=args.out is not None)
    facts = {"name": found.title, "run": found.run.id}
    if args.out is None:
        text = card.text_of(found)
        return output(args, facts | {"text": text}, text.rstrip("\n"))
    made = card.of(found)
    files = [str(path) for path in card.write(made, args.out)]
    return output(args, facts | {"text": made.text, "files": files}, f"{found.title}: wrote {', '.join(files)}")


def _diff(args: argparse.Namespace) -> int:
    from training.card import card

    text = card.diff(open_lake(args), args.before, args.after)
    return output(args, {"text": text}, text.rstrip("\n"))


def _export(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from lake.access import audit
    from lake.sql import tables
    from training.models import onnx_export

    if not args.onnx:
        raise BadInput("which format? give --onnx")
    opened = open_lake(args)
    made = onnx_export.export(opened, args.name, args.out, tolerance=args.tolerance)
    audit.record(opened, "models export", made.run, detail={"format": "onnx", "sha256": made.sha256})
    said = f"{made.name}: wrote {made.path} ({made.bytes / 2**20:,.1f} MiB)"
    checked = f"its answers to {made.checked_on:,} {made.checked_with} differ by {made.difference:.1e} at most"
    return output(args, tables.plain(asdict(made)), f"{said}; {checked}, {args.tolerance:g} is allowed")
