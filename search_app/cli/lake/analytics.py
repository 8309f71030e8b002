"""metrics, discover: how right the answers are by anything, and where they fail unprompted."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import TYPE_CHECKING, Any

from search_app.cli.terminal import Add, columns, open_lake, output

if TYPE_CHECKING:
    from lake.analytics.calibration import ReliabilityCurve
    from lake.analytics.metrics import Breakdown
    from lake.analytics.statistics import Rate
    from lake.storage.store import Lake


def register(add: Add) -> None:
    p = add("metrics", _metrics, "accuracy and error with intervals, by any one or two dimensions")
    p.add_argument("--by", metavar="DIM[,DIM]", help="a column, metadata.KEY, day, hour, width, box_size, cluster, ...")
    _scope(p)
    p.add_argument("--model", action="append", metavar="M", help="NAME or 'NAME VERSION'; again for more")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--calibration", action="store_true", help="is confidence what it says: curve and ECE")
    what.add_argument("--confusion", action="store_true", help="answers by true and predicted label")
    what.add_argument("--sizes", action="store_true", help="boxes and masks by COCO's sizes, with precision and recall")
    what.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="two models on the same images")
    what.add_argument("--dimensions", action="store_true", help="list what --by takes")

    p = add("discover", _discover, "name the slices that fail, unprompted")
    _scope(p)
    p.add_argument("--by", choices=("both", "metadata", "cluster"), default="both")
    p.add_argument(
        "--errors", choices=("judged", "confidence"), default="judged", help="confidence: for when nothing is judged"
    )
    p.add_argument("--save", action="store_true", help="save each one found as a slice")
    p.add_argument("--seed", type=int, default=0)


def _scope(p: argparse.ArgumentParser) -> None:
    p.add_argument("--where", metavar="SQL", help="only answers that pass")
    p.add_argument("--slice", metavar="NAME[@VERSION]", help="only answers about images of this slice")


def _metrics(args: argparse.Namespace) -> int:
    from lake.analytics import dimensions, metrics
    from lake.errors import BadInput

    opened = open_lake(args)
    if args.by and (args.calibration or args.confusion or args.sizes or args.compare or args.dimensions):
        raise BadInput("--by is for accuracy and error; give it without --calibration, --confusion, --sizes, --compare")
    if args.dimensions:
        names = dimensions.names(opened)
        return output(args, {"dimensions": names}, "\n".join(names))
    where = metrics.scope(opened, args.where, args.slice, args.model or ())
    if args.calibration:
        return _calibration(args, opened, where)
    if args.confusion:
        return _confusion(args, opened, where)
    if args.sizes:
        return _sizes(args, opened, where)
    if args.compare:
        return _compare(args, opened, where)
    return _by(args, metrics.by(opened, [one.strip() for one in args.by.split(",")] if args.by else [], where))


def _by(args: argparse.Namespace, found: Breakdown) -> int:
    keys = [one.name for one in found.dimensions]
    rows = [
        {
            **{key: value for key, value in zip(keys, cell.values, strict=False)},
            "answers": cell.answers,
            "judged": cell.known,
            "right": cell.right,
            "accuracy": _rate(cell.accuracy),
            "error": _rate(cell.error),
            "confidence": cell.confidence,
            "where": found.predicate(cell) if cell.values else None,
        }
        for cell in [*found.cells, found.whole]
    ]
    table = [[*(one.title for one in found.dimensions), "answers", "judged", "error", "95 % interval", "confidence"]]
    for cell in [*found.cells, found.whole]:
        named = ["-" if one is None else one for one in cell.values] if cell in found.cells else ["all"]
        named += [""] * (len(keys) - len(named))
        sure = "-" if cell.confidence is None else f"{cell.confidence:.3f}"
        table.append([*named, f"{cell.answers:,}", f"{cell.known:,}", *_percent(cell.error), sure])
    if not keys:
        table = [row[-5:] for row in table]
    text = columns(table, len(keys))
    if found.left_out:
        print(f"{found.left_out:,} smaller groups are not shown", file=sys.stderr)
    return output(args, {"by": keys, "cells": rows[:-1], "all": rows[-1], "left_out": found.left_out}, text)


def _calibration(args: argparse.Namespace, opened: Lake, where: str | None) -> int:
    from dataclasses import asdict

    from lake.analytics.calibration import calibration

    found = calibration(opened, where)
    if found.equal_width is None or found.equal_count is None:
        return output(args, asdict(found), "no judged answer has a confidence")
    lines = []
    for name, curve in (("bins of equal width", found.equal_width), ("bins of equal count", found.equal_count)):
        rows = [["confidence", "answers", "mean confidence", "accuracy", "95 % interval"]]
        for one in curve.bins:
            span = f"{one.low:.3g} to {one.high:.3g}"
            rows.append([span, f"{one.accuracy.n:,}", f"{one.confidence:.3f}", *_percent(one.accuracy)])
        lines += [f"{name}: {_ece(curve)}", columns(rows, 1), ""]
    return output(args, asdict(found), "\n".join(lines).rstrip())


def _ece(curve: ReliabilityCurve) -> str:
    return (
        f"ECE {curve.ece:.3f} (95 % {curve.low:.3f} to {curve.high:.3f}; "
        f"a calibrated model with as many answers stays below {curve.by_chance:.3f})"
    )


def _confusion(args: argparse.Namespace, opened: Lake, where: str | None) -> int:
    from lake.analytics import metrics

    found = metrics.confusion(opened, where)
    facts = [{"true": truth, "predicted": said, "answers": n} for (truth, said), n in found.items()]
    truths = sorted({truth for truth, _ in found})
    said = sorted({one for _, one in found}, key=str)
    rows = [["true \\ predicted", *map(str, said)]]
    rows += [[truth, *(f"{found.get((truth, one), 0):,}" for one in said)] for truth in truths]
    return output(args, {"cells": facts}, columns(rows, 1) if found else "no answer's image has a label")


def _sizes(args: argparse.Namespace, opened: Lake, where: str | None) -> int:
    from dataclasses import asdict

    from lake.analytics import detection

    kinds = {"boxes": detection.boxes(opened, where), "masks": detection.masks(opened, where)}
    rows = [["", "size", "objects", "answers", "mean score", "precision", "95 % interval", "recall", "95 % interval"]]
    for kind, found in kinds.items():
        for one in found:
            sure = "-" if one.confidence is None else f"{one.confidence:.3f}"
            rates = [*_percent(one.precision), *_percent(one.recall)]
            rows.append([kind, one.size, f"{one.boxes:,}", f"{one.answers:,}", sure, *rates])
    return output(args, {kind: [asdict(one) for one in found] for kind, found in kinds.items()}, columns(rows, 2))


def _compare(args: argparse.Namespace, opened: Lake, where: str | None) -> int:
    from dataclasses import asdict

    from lake.analytics import metrics

    old, new = args.compare
    found = metrics.compare(opened, old, new, where)
    lines = [
        f"{found.n:,} images were answered by both and are judged",
        f"both right {found.both:,}, both wrong {found.neither:,}",
        f"newly wrong {found.only_old:,} (only {old} was right), newly right {found.only_new:,} (only {new} is)",
        f"exact McNemar p {found.p:.4g}",
        *(f"newly wrong  {one}" for one in found.broken),
        *(f"newly right  {one}" for one in found.repaired),
    ]
    return output(args, asdict(found), "\n".join(lines))


def _discover(args: argparse.Namespace) -> int:
    from embeddings.discovery import findings
    from embeddings.discovery.discovery import discover
    from lake.analytics import metrics

    opened = open_lake(args)
    where = metrics.scope(opened, args.where, args.slice)
    found = discover(opened, where, by=args.by, errors=args.errors, seed=args.seed)
    facts = findings.facts(found)
    if found.remark:
        print(found.remark, file=sys.stderr)
    lines = []
    for place, one in enumerate(found.findings):
        lines.append(f"{place + 1}. {one.sentence(found.errors)}")
        same = f"; the same images: {', '.join(name for name, _ in one.same)}" if one.same else ""
        lines.append(f"   95 % {_span(one.error)} against {_span(one.rest)}, chance p {one.p:.4f}{same}")
        named = one.predicate and f"--where {shlex.quote(one.predicate)}"
        lines.append(f"   {named or f'{len(one.image_ids):,} images: --json has their ids'}")
    if not lines:
        lines.append("no slice fails more than chance explains")
    lines.append(
        f"{found.predictions:,} predictions and {found.compared:,} subgroups were compared in {found.seconds:.1f} s"
    )
    if args.save:
        saved = findings.save(opened, found, where)
        for one, name in zip(facts["findings"], saved, strict=True):
            one["slice"] = name
        lines += [f"saved as slice {name}" for name in saved]
    return output(args, facts, "\n".join(lines))


def _rate(rate: Rate) -> dict[str, Any]:
    return {"value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}


def _percent(rate: Rate) -> tuple[str, str]:
    if rate.value is None:
        return "-", "-"
    return f"{100 * rate.value:.1f} %", _span(rate)


def _span(rate: Rate) -> str:
    if rate.low is None or rate.high is None:
        return "-"
    return f"{100 * rate.low:.1f} to {100 * rate.high:.1f} %"
