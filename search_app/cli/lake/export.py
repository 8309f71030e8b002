"""slice export: a slice as files that other tools read."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lake.errors import CouldNot
from search_app.cli.terminal import Add, open_lake, output, progress

# As `lake.export.FORMATS` has them, which a parser need not import.
FORMATS = (
    *("imagefolder", "coco", "yolo", "voc", "csv", "jsonl"),
    *("parquet", "webdataset", "hf", "list", "label-studio", "lance"),
)


def register(add: Add, slices: Any) -> None:
    p = add("export", _export, "write a slice's images and labels in a format that others read", slices)
    p.add_argument("name", metavar="NAME[@VERSION]")
    p.add_argument("--format", choices=FORMATS, default="imagefolder")
    p.add_argument("--out", metavar="FOLDER", required=True, help="new or empty; an export that was stopped goes on")
    p.add_argument("--predictions", metavar="MODEL", help="also this model's newest answer to each image, with scores")


def _export(args: argparse.Namespace) -> int:
    from lake import slices
    from lake.access import audit
    from lake.slices.export import export

    opened = open_lake(args)
    made = slices.get(opened, args.name)
    audit.record(opened, "slice export", made.id, detail={"format": args.format, "predictions": args.predictions})
    with progress(args, "images", made.size) as count:
        report = export(opened, made, args.out, args.format, predictions=args.predictions, progress=count)
    for what, count in report.unsaid.items():
        print(f"{args.format} cannot say: {what} ({count:,})", file=sys.stderr)
    for image in report.left_out[:20]:
        print(f"left out {image['image_id']}: {image['reason']}", file=sys.stderr)
    if report.left_out:
        print(f"{len(report.left_out):,} images left out; the manifest lists them", file=sys.stderr)
    if report.left_out and not report.images:
        raise CouldNot(f"none of the {len(report.left_out):,} images of {made.id} could be written")
    before = ", all of it before" if report.already else f", {report.resumed:,} of them before" * bool(report.resumed)
    size = f"{report.bytes / 2**20:,.1f} MiB in {report.files:,} files"
    return output(
        args,
        report.as_dict(),
        f"{made.id}: wrote {report.images:,} images to {args.out} as {args.format} ({size}{before})",
    )
