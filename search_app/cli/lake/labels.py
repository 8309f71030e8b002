"""labels: what people said in a labelling tool comes into the lake."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from search_app.cli.terminal import Add, open_lake, output

SHOWN = 20


def register(add: Add, labels: Any) -> None:
    p = add("import", _import, "take the finished annotations of a Label Studio export as labels", labels)
    p.add_argument("path", metavar="FILE", help="the project's export, format JSON")


def _import(args: argparse.Namespace) -> int:
    from lake.access import audit
    from lake.labels import labelling_tools

    opened = open_lake(args)
    report = labelling_tools.import_annotations(opened, args.path)
    audit.record(opened, "labels import", args.path, detail={"labels": report.labels_new})
    for one in report.rejected[:SHOWN]:
        print(f"rejected {one['source']}: {one['reason']}", file=sys.stderr)
    if len(report.rejected) > SHOWN:
        print(f"... and {len(report.rejected) - SHOWN:,} more (--json lists all)", file=sys.stderr)
    return output(
        args,
        report.as_dict(),
        f"{report.labels_new:,} labels of {report.images:,} images new, {report.labels_known:,} known, "
        f"{len(report.rejected):,} rejected",
    )
