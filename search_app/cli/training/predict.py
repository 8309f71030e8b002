"""predict, shadow: batch predictions of a registered model, and predictions of shadowed versions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output, progress

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.inference.shadow import ShadowReport

# Most image ids in the text output; --json has all.
SHOWN = 20


def register(add: Add) -> None:
    p = add("predict", _predict, "predict images with a registered model, into the lake or to a file", writes=True)
    p.add_argument("name", metavar="NAME[@V]", help="a registered model: its promoted version, or version V")
    p.add_argument("--from", dest="folder", metavar="FOLDER", help="all image files in this folder")
    p.add_argument("--slice", metavar="NAME[@V]", help="the images of a slice")
    p.add_argument("--where", metavar="SQL", help="images with a prediction that passes this filter")
    p.add_argument("--log", action="store_true", help="store the predictions in the lake; running it again resumes")
    p.add_argument("--out", metavar="FILE", help="write the predictions as a prediction log, .jsonl or .parquet")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: one a core)")

    p = add(
        "shadow",
        _shadow,
        "predict with shadowed versions what production has predicted; the table scores stores it",
        writes=True,
    )
    p.add_argument("name", metavar="NAME", help="a model with a shadowed version (see lakeloop models shadow)")
    p.add_argument("--limit", type=int, metavar="N", help="most predictions of each shadowed version; the newest first")
    p.add_argument("--watch", action="store_true", help="keep predicting new images until interrupted; with --json a line for each round")  # fmt: skip  # noqa: E501
    p.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: one a core)")


def _predict(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from lake.access import audit
    from training.inference import batch, served_model

    if sum(value is not None for value in (args.folder, args.slice, args.where)) != 1:
        raise BadInput("no images: give one of --from FOLDER, --slice NAME and --where SQL")
    if args.log == bool(args.out):
        raise BadInput("no output: give either --log for the lake or --out FILE")
    _check_workers(args)
    lake = open_lake(args)
    version = served_model.served_version(lake, args.name)
    if args.folder is not None:
        images: Any = batch.files(Path(args.folder))
    else:
        images = batch.stored(lake, slice=args.slice, filter=args.where)
    model = served_model.Predictor(lake, version.run, args.device)
    if args.log:
        detail = {"run": version.run, "from": args.folder, "slice": args.slice, "where": args.where}
        audit.record(lake, "predict", f"{version.model}@{version.version}", detail=detail)
    out = Path(args.out) if args.out else None
    with progress(args, "images", None if args.folder is not None else len(images)) as count:
        report = batch.run(lake, images, version, model, log=args.log, out=out, workers=args.workers, progress=count)
    for rejected in report.rejected[:SHOWN]:
        print(f"no prediction for {rejected['source']}: {rejected['reason']}", file=sys.stderr)
    if len(report.rejected) > SHOWN:
        print(f"... and {len(report.rejected) - SHOWN:,} more (list all with --json)", file=sys.stderr)
    if not report.predicted and not report.known:
        raise BadInput(f"no image was predicted ({len(report.rejected):,} failed)")
    counts = ", ".join(
        f"{label} {n:,}" for label, n in sorted(report.by_label.items(), key=lambda item: (-item[1], item[0]))
    )
    known = f", {report.known:,} known" if args.log else ""
    text = (
        f"{version.model}@{version.version} (run {version.run}): {report.predicted:,} predicted{known}, "
        f"{len(report.rejected):,} failed; {report.seconds:.1f} s"
    )
    return output(args, asdict(report), f"{text}\n{counts}" if counts else text)


def _shadow(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from lake.access import audit
    from training.inference import shadow

    if args.limit is not None and args.limit < 1:
        raise BadInput(f"--limit is {args.limit}; it must be at least 1")
    if args.watch and args.limit is not None:
        raise BadInput("--watch runs until interrupted, and --limit is for a single pass; give only one of them")
    _check_workers(args)
    lake = open_lake(args)
    if args.watch:
        return _watch(args, lake)
    audit.record(lake, "shadow", args.name, detail={"limit": args.limit})
    with progress(args, "predictions") as count:
        reports = shadow.predict(lake, args.name, limit=args.limit, workers=args.workers, progress=count)
    for report in reports:
        for image_id, reason in [*report.not_predicted.items()][:SHOWN]:
            print(f"no prediction for {image_id}: {reason}", file=sys.stderr)
    return output(args, [asdict(report) for report in reports], "\n".join(_text(report) for report in reports))


def _watch(args: argparse.Namespace, lake: Lake) -> int:
    import json
    import signal
    import threading
    from dataclasses import asdict

    from lake.access import audit
    from training.inference import shadow

    stop = threading.Event()
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGTERM, signal.SIGINT)}

    def show(report: ShadowReport) -> None:
        print(json.dumps(asdict(report)) if args.json else _text(report), flush=True)

    audit.record(lake, "shadow", args.name, detail={"watch": True})
    print(f"predicting in the shadow of {args.name}; stop with Ctrl-C", file=sys.stderr)
    try:
        shadow.watch(lake, args.name, stop, show, workers=args.workers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _text(report: ShadowReport) -> str:
    share = f" ({report.differ / report.compared:.1%})" if report.compared else ""
    failed = f", {len(report.not_predicted):,} images failed" if report.not_predicted else ""
    return (
        f"{report.model}@{report.version} (run {report.run}): {report.predicted:,} predicted now{failed}, "
        f"{report.waiting:,} waiting; "
        f"{report.differ:,} of {report.compared:,} differ from production{share}: see the view shadow_disagreements"
    )


def _check_workers(args: argparse.Namespace) -> None:
    if args.workers is not None and args.workers < 1:
        raise BadInput(f"--workers is {args.workers}; it must be at least 1")
