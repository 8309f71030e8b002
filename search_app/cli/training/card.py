"""models card, diff, export: a version's model card, the comparison of two versions, ONNX export."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, number, open_lake, output


def register(add: Add, models: Any) -> None:
    p = add("card", _card, "write the model card of a version: README.md and plots", models)
    p.add_argument("name", metavar="NAME[@V]|RUN")
    p.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write README.md and the plots to this folder (default: print it without plots)",
    )

    p = add("diff", _diff, "compare two versions: data, recipe, metrics", models)
    p.add_argument("before", metavar="NAME[@V]|RUN")
    p.add_argument("after", metavar="NAME[@V]|RUN")

    p = add(
        "export", _export, "export a version for other runtimes; fails if its predictions differ", models, writes=True
    )
    p.add_argument("name", metavar="NAME[@V]|RUN")
    p.add_argument("--onnx", action="store_true", help="ONNX, the only format")
    p.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for model.onnx and model.json")
    p.add_argument("--tolerance", type=number, metavar="T", default=1e-4,
                   help="largest difference of its numbers, relative to 1 + their size (default: 1e-4)")  # fmt: skip


def _card(args: argparse.Namespace) -> int:
    from training.card import card, facts

    lake = open_lake(args)
    record = facts.gather(lake, args.name, predictions=args.out is not None)
    summary = {"name": record.title, "run": record.run.id}
    if args.out is None:
        text = card.text_of(record)
        return output(args, summary | {"text": text}, text.rstrip("\n"))
    card_ = card.from_facts(record)
    files = [str(path) for path in card.write(card_, args.out)]
    return output(args, summary | {"text": card_.text, "files": files}, f"{record.title}: wrote {', '.join(files)}")


def _diff(args: argparse.Namespace) -> int:
    from training.card import diff

    text = diff.diff(open_lake(args), args.before, args.after)
    return output(args, {"text": text}, text.rstrip("\n"))


def _export(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from lake.access import audit
    from lake.sql import tables
    from training.models import onnx_export

    if not args.onnx:
        raise BadInput("no format: give --onnx")
    lake = open_lake(args)
    exported = onnx_export.export(lake, args.name, args.out, tolerance=args.tolerance)
    audit.record(lake, "models export", exported.run, detail={"format": "onnx", "sha256": exported.sha256})
    file = f"{exported.name}: wrote {exported.path} ({exported.bytes / 2**20:,.1f} MiB)"
    compared = f"{exported.checked_on:,} {exported.checked_with}"
    check = f"its predictions for {compared} differ by at most {exported.difference:.1e}"
    return output(args, tables.plain(asdict(exported)), f"{file}; {check}, {args.tolerance:g} is allowed")
