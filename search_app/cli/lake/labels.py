"""labels import: imports labels from a labelling tool. labels retract: takes back empty labels that may be false."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output

SHOWN = 20


def register(add: Add, labels: Any) -> None:
    p = add(
        "import", _import, "import the finished annotations of a Label Studio export as labels", labels, writes=True
    )
    p.add_argument("path", metavar="FILE", help="the export of the project in format JSON")

    p = add(
        "retract", _retract, "take back labels of an earlier release that say nothing is there", labels, writes=True
    )
    p.add_argument("--all", action="store_true", help="also those of ingests that no record of jobs has")
    p.add_argument("--undo", action="store_true", help="give the labels again that were taken back")
    p.add_argument("--dry-run", action="store_true", help="only report which labels")


def _import(args: argparse.Namespace) -> int:
    from lake.access import audit
    from lake.labels import labelling_tools

    lake = open_lake(args)
    report = labelling_tools.import_annotations(lake, args.path)
    audit.record(lake, "labels import", args.path, detail={"labels": report.labels_new})
    for rejected in report.rejected[:SHOWN]:
        print(f"rejected {rejected['source']}: {rejected['reason']}", file=sys.stderr)
    if len(report.rejected) > SHOWN:
        print(f"... and {len(report.rejected) - SHOWN:,} more (list all with --json)", file=sys.stderr)
    notes = [f"\nincomplete   {n:,} annotations for {task}" for task, n in report.incomplete.most_common()]
    notes += [f"\nconverted    {n:,}: {reason}" for reason, n in report.converted.most_common()]
    return output(
        args,
        report.as_dict(),
        f"{report.labels_new:,} labels of {report.images:,} images new, {report.labels_known:,} known, "
        f"{len(report.rejected):,} rejected{''.join(notes)}",
    )


def _retract(args: argparse.Namespace) -> int:
    from collections import Counter

    from lake.access import audit
    from lake.labels import retraction

    if args.all and args.undo:
        raise BadInput("--undo gives all of them again: leave out --all")
    lake = open_lake(args)
    if args.undo:
        report, what = retraction.undo(lake, dry_run=args.dry_run), "given again"
    else:
        report, what = retraction.retract(lake, all=args.all, dry_run=args.dry_run), "taken back"
    if not args.dry_run:
        audit.record(lake, "labels retract", None, detail={"labels": report.written, "undo": args.undo})
    paths = Counter(label.ingest.path if label.ingest else "no record of the ingest" for label in report.labels)
    lines = [f"{n:,} of {path}" for path, n in paths.items() if not args.undo]
    lines.append(
        f"{len(report.labels) if args.dry_run else report.written:,} empty labels {what}"
        + ", not yet: --dry-run" * args.dry_run
    )
    if report.written:
        lines.append("frozen slices keep the labels they were frozen with: freeze them again")
    return output(args, report.as_dict(), "\n".join(lines))
