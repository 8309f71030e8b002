"""metrics, discover: accuracy by any dimension, and groups of images with many errors."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING

from search_app.cli.foreground import add_detach, run_job
from search_app.cli.terminal import Add, columns, open_lake, output

if TYPE_CHECKING:
    from lake.analytics.calibration import ReliabilityCurve
    from lake.analytics.metrics import Breakdown
    from lake.analytics.statistics import Rate
    from lake.storage.store import Lake


def register(add: Add) -> None:
    p = add("metrics", _metrics, "accuracy and error rate with intervals, by one or two dimensions")
    p.add_argument("--by", metavar="DIM[,DIM]", help="a column, metadata.KEY, day, hour, width, box_size, cluster, ...")
    _scope(p)
    p.add_argument(
        "--model", action="append", metavar="M", help="only this model: NAME or 'NAME VERSION'; repeat for more"
    )
    kind = p.add_mutually_exclusive_group()
    kind.add_argument(
        "--calibration", action="store_true", help="reliability curve and expected calibration error (ECE)"
    )
    kind.add_argument("--confusion", action="store_true", help="number of predictions by true and predicted label")
    kind.add_argument(
        "--sizes", action="store_true", help="boxes and masks by size as in COCO, with precision and recall"
    )
    kind.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="compare two models on the same images")
    kind.add_argument("--dimensions", action="store_true", help="list the values of --by")

    p = add("discover", _discover, "find groups of images with more errors than chance explains", writes=True)
    _scope(p)
    p.add_argument("--by", choices=("both", "metadata", "cluster"), default="both")
    p.add_argument(
        "--errors",
        choices=("judged", "confidence"),
        default="judged",
        help="what counts as an error; confidence: for predictions without labels",
    )
    p.add_argument("--save", action="store_true", help="save each finding as a slice")
    p.add_argument("--seed", type=int, default=0)
    add_detach(p)


def _scope(p: argparse.ArgumentParser) -> None:
    p.add_argument("--where", metavar="SQL", help="only predictions that pass")
    p.add_argument("--slice", metavar="NAME[@VERSION]", help="only predictions for images of this slice")


def _metrics(args: argparse.Namespace) -> int:
    from lake.analytics import dimensions, metrics
    from lake.errors import BadInput

    lake = open_lake(args)
    if args.by and (args.calibration or args.confusion or args.sizes or args.compare or args.dimensions):
        raise BadInput("--by cannot be combined with --calibration, --confusion, --sizes, --compare or --dimensions")
    if args.dimensions:
        names = dimensions.names(lake)
        return output(args, {"dimensions": names}, "\n".join(names))
    where = metrics.scope(lake, args.where, args.slice, args.model or ())
    if args.calibration:
        return _calibration(args, lake, where)
    if args.confusion:
        return _confusion(args, lake, where)
    if args.sizes:
        return _sizes(args, lake, where)
    if args.compare:
        return _compare(args, lake, where)
    return _by(args, metrics.by(lake, [name.strip() for name in args.by.split(",")] if args.by else [], where))


def _by(args: argparse.Namespace, breakdown: Breakdown) -> int:
    keys = [dimension.name for dimension in breakdown.dimensions]
    titles = [dimension.title for dimension in breakdown.dimensions]
    table = [[*titles, "predictions", "with label", "error", "95 % interval", "confidence"]]
    for cell in [*breakdown.cells, breakdown.whole]:
        values = ["-" if value is None else value for value in cell.values] if cell in breakdown.cells else ["all"]
        values += [""] * (len(keys) - len(values))
        confidence = "-" if cell.confidence is None else f"{cell.confidence:.3f}"
        table.append([*values, f"{cell.predictions:,}", f"{cell.known:,}", *_percent(cell.error), confidence])
    if not keys:
        table = [row[-5:] for row in table]
    text = columns(table, len(keys))
    if breakdown.left_out:
        print(f"{breakdown.left_out:,} smaller groups are not shown", file=sys.stderr)
    return output(args, breakdown.as_dict(), text)


def _calibration(args: argparse.Namespace, lake: Lake, where: str | None) -> int:
    from dataclasses import asdict

    from lake.analytics.calibration import calibration

    result = calibration(lake, where)
    if result.equal_width is None or result.equal_count is None:
        return output(args, asdict(result), "no prediction with a label has a confidence")
    lines = []
    for name, curve in (("bins of equal width", result.equal_width), ("bins of equal count", result.equal_count)):
        rows = [["confidence", "predictions", "mean confidence", "accuracy", "95 % interval"]]
        for bin_ in curve.bins:
            range_ = f"{bin_.low:.3g} to {bin_.high:.3g}"
            rows.append([range_, f"{bin_.accuracy.n:,}", f"{bin_.confidence:.3f}", *_percent(bin_.accuracy)])
        lines += [f"{name}: {_ece(curve)}", columns(rows, 1), ""]
    return output(args, asdict(result), "\n".join(lines).rstrip())


def _ece(curve: ReliabilityCurve) -> str:
    return (
        f"ECE {curve.ece:.3f} (95 % {curve.low:.3f} to {curve.high:.3f}; "
        f"a calibrated model with as many predictions stays below {curve.by_chance:.3f})"
    )


def _confusion(args: argparse.Namespace, lake: Lake, where: str | None) -> int:
    from lake.analytics import metrics

    counts = metrics.confusion(lake, where)
    labels = sorted({label for label, _ in counts})
    predicted = sorted({prediction for _, prediction in counts}, key=str)
    rows = [["true \\ predicted", *map(str, predicted)]]
    rows += [[label, *(f"{counts.get((label, prediction), 0):,}" for prediction in predicted)] for label in labels]
    facts = {"cells": metrics.confusion_cells(lake, where)}
    return output(args, facts, columns(rows, 1) if counts else "no image with a prediction has a label")


def _sizes(args: argparse.Namespace, lake: Lake, where: str | None) -> int:
    from dataclasses import asdict

    from lake.analytics import detection

    kinds = {"boxes": detection.boxes(lake, where), "masks": detection.masks(lake, where)}
    rows = [
        ["", "size", "objects", "predictions", "mean score", "precision", "95 % interval", "recall", "95 % interval"]
    ]
    for kind, sizes in kinds.items():
        for size in sizes:
            confidence = "-" if size.confidence is None else f"{size.confidence:.3f}"
            rates = [*_percent(size.precision), *_percent(size.recall)]
            rows.append([kind, size.size, f"{size.boxes:,}", f"{size.predictions:,}", confidence, *rates])
    return output(args, {kind: [asdict(size) for size in sizes] for kind, sizes in kinds.items()}, columns(rows, 2))


def _compare(args: argparse.Namespace, lake: Lake, where: str | None) -> int:
    from dataclasses import asdict

    from lake.analytics import metrics

    old, new = args.compare
    result = metrics.compare(lake, old, new, where)
    lines = [
        f"{result.n:,} images have a label and predictions of both models",
        f"both correct {result.both:,}, both wrong {result.neither:,}",
        f"newly wrong {result.only_old:,} (only {old} is correct)",
        f"newly right {result.only_new:,} (only {new} is correct)",
        f"exact McNemar p {result.p:.4g}",
        *(f"newly wrong  {image_id}" for image_id in result.broken),
        *(f"newly right  {image_id}" for image_id in result.repaired),
    ]
    return output(args, asdict(result), "\n".join(lines))


def _discover(args: argparse.Namespace) -> int:
    from embeddings.discovery import findings
    from lake.analytics import metrics
    from lake.errors import BadInput

    if args.save and args.detach:
        raise BadInput("--save needs the findings now; give it without --detach")
    lake = open_lake(args)
    scope = {"where": args.where, "slice": args.slice}
    result = run_job(args, lake, "discover", {**scope, "by": args.by, "errors": args.errors, "seed": args.seed})
    if result is None:
        return 0
    facts = findings.facts(result)
    if result.remark:
        print(result.remark, file=sys.stderr)
    lines = []
    for index, finding in enumerate(result.findings):
        lines.append(f"{index + 1}. {finding.sentence(result.errors)}")
        same = f"; the same images: {', '.join(name for name, _ in finding.same)}" if finding.same else ""
        lines.append(f"   95 % {_span(finding.error)} against {_span(finding.rest)}, chance p {finding.p:.4f}{same}")
        filter_ = finding.predicate and f"--where {shlex.quote(finding.predicate)}"
        lines.append(f"   {filter_ or f'{len(finding.image_ids):,} images: --json has their ids'}")
    if not lines:
        lines.append("no group has more errors than chance explains")
    lines.append(
        f"{result.predictions:,} predictions and {result.compared:,} subgroups compared in {result.seconds:.1f} s"
    )
    if args.save:
        saved = findings.save(lake, result, metrics.scope(lake, args.where, args.slice))
        for finding, name in zip(facts["findings"], saved, strict=True):
            finding["slice"] = name
        lines += [f"saved as slice {name}" for name in saved]
    return output(args, facts, "\n".join(lines))


def _percent(rate: Rate) -> tuple[str, str]:
    if rate.value is None:
        return "-", "-"
    return f"{100 * rate.value:.1f} %", _span(rate)


def _span(rate: Rate) -> str:
    if rate.low is None or rate.high is None:
        return "-"
    return f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %"
