"""predict, shadow: a registered model's answers to many images, and a candidate's beside production's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output, progress

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.inference.shadow import Report

# Images and differences that are named on the screen; all of them are in --json and in the view.
SHOWN = 20


def register(add: Add) -> None:
    p = add("predict", _predict, "a registered model's answers to many images, logged or written to a file")
    p.add_argument("name", metavar="NAME[@V]", help="a registered model: what is promoted of it, or this version")
    p.add_argument("--from", dest="folder", metavar="FOLDER", help="the image files under it")
    p.add_argument("--slice", metavar="NAME[@V]", help="the images of a slice")
    p.add_argument("--where", metavar="SQL", help="images with an answer that passes this filter")
    p.add_argument("--log", action="store_true", help="put the answers into the lake, once; again goes on")
    p.add_argument("--out", metavar="FILE", help="write them as a prediction log, .jsonl or .parquet")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: one a core)")

    p = add("shadow", _shadow, "shadowed versions answer what production answered; the answers go into scores")
    p.add_argument("name", metavar="NAME", help="a model with a version that is shadowed (lakeloop models shadow)")
    p.add_argument("--limit", type=int, metavar="N", help="answers at most, of each shadowed version; the newest first")
    p.add_argument("--watch", action="store_true", help="go on with what arrives, until interrupted; --json: a line a round")  # fmt: skip  # noqa: E501
    p.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: one a core)")


def _predict(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from lake.access import audit
    from training.inference import batch, served_model

    if sum(given is not None for given in (args.folder, args.slice, args.where)) != 1:
        raise BadInput("which images? give one of --from FOLDER, --slice NAME and --where SQL")
    if args.log == bool(args.out):
        raise BadInput("where do the answers go? give --log, into the lake, or --out FILE")
    _check_workers(args)
    opened = open_lake(args)
    who = served_model.source(opened, args.name)
    if args.folder is not None:
        asked: Any = batch.files(Path(args.folder))
    else:
        asked = batch.stored(opened, slice=args.slice, filter=args.where)
    answering = served_model.Answering(opened, who.run, args.device)
    if args.log:
        detail = {"run": who.run, "from": args.folder, "slice": args.slice, "where": args.where}
        audit.record(opened, "predict", f"{who.model}@{who.version}", detail=detail)
    out = Path(args.out) if args.out else None
    with progress(args, "images", None if args.folder is not None else len(asked)) as count:
        found = batch.run(opened, asked, who, answering, log=args.log, out=out, workers=args.workers, progress=count)
    for bad in found.rejected[:SHOWN]:
        print(f"unanswered {bad['source']}: {bad['reason']}", file=sys.stderr)
    if len(found.rejected) > SHOWN:
        print(f"... and {len(found.rejected) - SHOWN:,} more (--json lists all)", file=sys.stderr)
    if not found.answered and not found.known:
        raise BadInput(f"nothing was answered ({len(found.rejected):,} could not be)")
    said = ", ".join(f"{label} {n:,}" for label, n in sorted(found.by_label.items(), key=lambda one: (-one[1], one[0])))
    known = f", {found.known:,} known" if args.log else ""
    text = (
        f"{who.model}@{who.version} (run {who.run}): {found.answered:,} answered{known}, "
        f"{len(found.rejected):,} not; {found.seconds:.1f} s"
    )
    return output(args, asdict(found), f"{text}\n{said}" if said else text)


def _shadow(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from lake.access import audit
    from training.inference import shadow

    if args.limit is not None and args.limit < 1:
        raise BadInput(f"--limit is {args.limit}; it is 1 or more")
    if args.watch and args.limit is not None:
        raise BadInput("--watch goes on until it is interrupted; --limit belongs to a single pass")
    _check_workers(args)
    opened = open_lake(args)
    if args.watch:
        return _watch(args, opened)
    audit.record(opened, "shadow", args.name, detail={"limit": args.limit})
    with progress(args, "answers") as count:
        found = shadow.answer(opened, args.name, limit=args.limit, workers=args.workers, progress=count)
    for one in found:
        for image, reason in [*one.unanswered.items()][:SHOWN]:
            print(f"unanswered {image}: {reason}", file=sys.stderr)
    return output(args, [asdict(one) for one in found], "\n".join(_said(one) for one in found))


def _watch(args: argparse.Namespace, opened: Lake) -> int:
    import json
    import signal
    import threading
    from dataclasses import asdict

    from lake.access import audit
    from training.inference import shadow

    stop = threading.Event()
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGTERM, signal.SIGINT)}

    def tell(one: Report) -> None:
        print(json.dumps(asdict(one)) if args.json else _said(one), flush=True)

    audit.record(opened, "shadow", args.name, detail={"watch": True})
    print(f"answering beside {args.name}; Ctrl-C ends it", file=sys.stderr)
    try:
        shadow.watch(opened, args.name, stop, tell, workers=args.workers)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _said(one: Report) -> str:
    share = f" ({one.differ / one.compared:.1%})" if one.compared else ""
    lost = f", {len(one.unanswered):,} images could not be answered" if one.unanswered else ""
    return (
        f"{one.model}@{one.version} (run {one.run}): {one.answered:,} answered now{lost}, {one.waiting:,} wait; "
        f"{one.differ:,} of {one.compared:,} unlike production{share}: see the view shadow_disagreements"
    )


def _check_workers(args: argparse.Namespace) -> None:
    if args.workers is not None and args.workers < 1:
        raise BadInput(f"--workers is {args.workers}; it is 1 or more")
