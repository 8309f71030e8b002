"""slice export: writes a slice as files for other tools."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from lake.errors import CouldNot
from search_app.cli.foreground import add_detach, run_job
from search_app.cli.terminal import Add, open_lake, output

# The formats of `lake.slices.export`, which the parser does not import.
FORMATS = (
    *("imagefolder", "coco", "yolo", "voc", "csv", "jsonl"),
    *("parquet", "webdataset", "hf", "list", "label-studio", "lance"),
)


def register(add: Add, slices: Any) -> None:
    p = add("export", _export, "write the images and labels of a slice in a format of other tools", slices, writes=True)
    p.add_argument("name", metavar="NAME[@VERSION]")
    p.add_argument("--format", choices=FORMATS, default="imagefolder")
    p.add_argument("--out", metavar="FOLDER", required=True, help="new or empty; an interrupted export resumes")
    p.add_argument(
        "--predictions", metavar="MODEL", help="also the newest prediction of this model for each image, with scores"
    )
    add_detach(p)


def _export(args: argparse.Namespace) -> int:
    from lake import slices

    lake = open_lake(args)
    slice_ = slices.get(lake, args.name)
    options = {"format": args.format, "predictions": args.predictions, "out": os.path.abspath(args.out)}
    report = run_job(args, lake, "export", {"slice": slice_.id, **options})
    if report is None:
        return 0
    for content, count in report.unsaid.items():
        print(f"{args.format} cannot store: {content} ({count:,})", file=sys.stderr)
    for image in report.left_out[:20]:
        print(f"left out {image['image_id']}: {image['reason']}", file=sys.stderr)
    if report.left_out:
        print(f"{len(report.left_out):,} images left out; the manifest lists them", file=sys.stderr)
    if report.left_out and not report.images:
        raise CouldNot(f"none of the {len(report.left_out):,} images of {slice_.id} could be written")
    resumed = (
        ", all by an earlier run"
        if report.already
        else f", {report.resumed:,} of them by an earlier run" * bool(report.resumed)
    )
    size = f"{report.bytes / 2**20:,.1f} MiB in {report.files:,} files"
    return output(
        args,
        report.as_dict(),
        f"{slice_.id}: wrote {report.images:,} images to {args.out} as {args.format} ({size}{resumed})",
    )
