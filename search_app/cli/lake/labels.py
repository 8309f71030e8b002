"""labels import: imports labels from a labelling tool."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from search_app.cli.terminal import Add, open_lake, output

SHOWN = 20


def register(add: Add, labels: Any) -> None:
    p = add(
        "import", _import, "import the finished annotations of a Label Studio export as labels", labels, writes=True
    )
    p.add_argument("path", metavar="FILE", help="the export of the project in format JSON")


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
