"""init, ingest, embed, status: creates a lake, fills it, shows what is in it."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, CouldNot
from search_app.cli.foreground import add_detach, run_job
from search_app.cli.terminal import Add, open_lake, output, uri

if TYPE_CHECKING:
    from embeddings.backfill.backfill import BackfillReport
    from lake.storage.store import Lake


# The layouts of `lake.ingest.sources.LAYOUTS`, which the parser does not import.
_LAYOUTS = (
    *("auto", "folder", "imagefolder", "table", "coco", "yolo", "voc", "metadata"),
    *("webdataset", "parquet", "lance"),
)


def register(add: Add) -> None:
    p = add("init", _init, "create an empty lake", writes=True)
    p.add_argument(
        "--embedder",
        action="append",
        metavar="NAME",
        help="an embedder of the lake; repeat for more; the first is the default",
    )
    p.add_argument("--column", action="append", metavar="NAME:TYPE", help="a metadata key that gets a column of its own (string, int, float, bool, timestamp)")  # fmt: skip  # noqa: E501

    p = add("ingest", _ingest, "ingest images, a prediction log or a data set", writes=True)
    p.add_argument("path", metavar="PATH")
    p.add_argument("--layout", choices=_LAYOUTS, default="auto")
    p.add_argument("--model", metavar="NAME", help="boxes, masks and scores of the data set are predictions of this model, not labels")  # fmt: skip  # noqa: E501
    p.add_argument("--model-version", metavar="VERSION")
    p.add_argument("--orientation", choices=("stored", "upright"), help="of images that EXIF turns, the data set's coordinates are of the stored or of the upright pixels")  # fmt: skip  # noqa: E501
    p.add_argument("--white-point", metavar="WHITE", help="in images of more than 8 bits, the value that is white (or BLACK..WHITE); auto: find it again")  # fmt: skip  # noqa: E501
    p.add_argument("--map", action="append", metavar="FIELD=COLUMN", help="of a log: the column of a field; COLUMN none: no column; repeat for more")  # fmt: skip  # noqa: E501
    p.add_argument("--truth", metavar="COLUMN", help="of a log: the column with the true class, which becomes a label")
    p.add_argument("--encoding", metavar="NAME", help="of a log: default UTF-8, or UTF-16 by its byte order mark")
    p.add_argument("--separator", metavar="CHARACTER", help="of a CSV log: comma, semicolon, tab, pipe or a character; default: found by the header")  # fmt: skip  # noqa: E501
    p.add_argument("--confidence-scale", type=float, metavar="N", help="of a log: 100 if confidences and scores are percentages")  # fmt: skip  # noqa: E501
    add_detach(p)

    p = add("embed", _embed, "compute a vector for every image without one", writes=True)
    p.add_argument("--embedder", metavar="NAME", help="default: the first of the lake; a new embedder is added")
    p.add_argument(
        "--weights", metavar="FILE", help="weights in a .safetensors file, or .pth / .pt with --trust-sha256"
    )
    p.add_argument("--retrained", metavar="NAME[@V]|RUN", help="add an embedder from the features of a fine-tuned classifier")  # fmt: skip  # noqa: E501
    p.add_argument("--trust-sha256", metavar="HEX", help="the SHA-256 of a .pth / .pt file that you trust")
    p.add_argument("--engine", choices=("auto", "torch", "openvino"), default="auto")
    p.add_argument("--watch", action="store_true", help="keep embedding new images until interrupted; with --json a line for each round")  # fmt: skip  # noqa: E501
    p.add_argument("--order", choices=("oldest", "newest", "sampled"), default="oldest", help="which images come first")
    p.add_argument("--retry-failed", action="store_true", help="also try images that failed in an earlier run")
    add_detach(p)

    add("status", _status, "show what is in the lake")


def _init(args: argparse.Namespace) -> None:
    import lake
    from embeddings.embedders import specs
    from lake.access import audit

    names = args.embedder or [specs.DEFAULT]
    for name in names:
        specs.check_name(name)
    columns = {}
    for text in args.column or []:
        name, colon, kind = text.partition(":")
        if not colon:
            raise BadInput(f"--column {text!r}: write NAME:TYPE, e.g. camera:int")
        columns[name] = kind
    created = lake.create(uri(args), embedders=list(dict.fromkeys(names)), columns=columns)
    audit.record(created, "init", created.uri, detail={"embedders": names, "columns": columns})
    records = [{"name": r.name, "column": r.column} for r in created.embedders()]
    facts = {"lake": created.uri, "embedders": records, "columns": columns}
    output(args, facts, f"created {created.uri} with embedder {', '.join(r['name'] for r in records)}")


def _ingest(args: argparse.Namespace) -> int:
    from pathlib import Path

    from lake.ingest import sources

    if args.model_version and not args.model:
        raise BadInput("--model-version needs --model")

    lake = open_lake(args)
    layout = sources.resolve(Path(args.path), args.layout)
    if args.layout == "auto":
        print(f"reading {args.path} as layout {layout}", file=sys.stderr)
    options = ("model", "model_version", "orientation", "white_point")
    log_options = ("map", "truth", "encoding", "separator", "confidence_scale")
    said = {name: getattr(args, name) for name in (*options, *log_options)}
    report = run_job(args, lake, "ingest", {"path": os.path.abspath(args.path), "layout": layout, **said})
    if report is None:
        return 0
    return output(args, report.as_dict(), "\n".join(report.lines()))


def _embed(args: argparse.Namespace) -> int:
    lake = open_lake(args)
    if args.retrained:
        from training.models import retrained_embedder

        if args.weights:
            raise BadInput("--retrained and --weights contradict each other: give only one")
        args.embedder = retrained_embedder.register(lake, args.retrained, args.embedder).name
    if args.watch:
        if args.detach:
            raise BadInput("--watch does not end, so it is no job; start it in the background: lakeloop serve --embed")
        return _watch(args, lake)
    options = {"engine": args.engine, "order": args.order, "trust_sha256": args.trust_sha256}
    options |= {"retry_failed": True} if args.retry_failed else {}
    weights = os.path.abspath(args.weights) if args.weights else None
    report = run_job(args, lake, "embed", {"embedder": args.embedder, "weights": weights, **options})
    return 0 if report is None else _output_embedded(args, report)


def _watch(args: argparse.Namespace, lake: Lake) -> int:
    from pathlib import Path

    from embeddings.backfill import watch_process
    from embeddings.embedders import embedder as embedders

    record = embedders.known_or_new(lake, args.embedder)
    file = Path(args.weights) if args.weights else None
    trust, images = args.trust_sha256, watch_process.IMAGES
    model = embedders.for_lake(lake, record, file=file, trust_sha256=trust, engine=args.engine, images=images)
    print(f"embedding new images with {record.name}, {args.order} first; Ctrl-C ends it", file=sys.stderr)
    report = watch_process.print_json if args.json else watch_process.LagPrinter()
    watch_process.run(lake, record, model, order=args.order, file=file, report=report)
    return 0


def _output_embedded(args: argparse.Namespace, report: BackfillReport) -> int:
    names = (
        *("embedder", "embedded", "failed", "failed_before", "by_others", "without_bytes", "unreadable"),
        *("images_per_second", "seconds"),
    )
    others = f", {report.by_others:,} by another process" if report.by_others else ""
    before = f", {report.failed_before:,} failed before (try them with --retry-failed)" if report.failed_before else ""
    without = f", {report.without_bytes:,} without bytes" if report.without_bytes else ""
    unreadable = f", {report.unreadable:,} unreadable" if report.unreadable else ""
    text = (
        f"{report.embedder}: {report.embedded:,} embedded{others}, {report.failed:,} failed{before}{without}"
        f"{unreadable}; {report.seconds:.1f} s ({report.images_per_second:.1f} images/s)"
    )
    return output(args, {n: getattr(report, n) for n in names}, text)


def _status(args: argparse.Namespace) -> int:
    from lake.analytics import summary
    from lake.sql import tables

    lake = open_lake(args)
    facts = summary.status(lake)
    depth = _spool_depth(lake)
    if depth is not None:
        facts["spool"] = depth
    lines = [
        f"lake         {facts['lake']}",
        *(f"{name:<12} {facts[name]:,}" for name in ("images", "samples", "predictions", "labels", "slices")),
    ]
    for task, images in facts["incomplete"].items():
        lines.append(f"incomplete   {images:,} images for {task}: a part of their label was refused")
    for e in facts["embedders"]:
        missing = f", {e['missing']:,} missing: lakeloop embed --embedder {e['name']}" if e["missing"] else ""
        failed = f", {e['failed']:,} failed" if e["failed"] else ""
        lines.append(f"embedder     {e['name']}: {e['embedded']:,} images embedded{failed}{missing}")
    for m in facts["models"]:
        lines.append(f"model        {m['model']} {m['model_version'] or ''}: {m['predictions']:,} predictions")
    for reason, images in facts["image_status"].items():
        lines.append(f"no picture   {images:,} images: {reason}")
    if depth is not None:
        parked = f", {depth['parked']:,} parked: see lakeloop spool parked list" if depth["parked"] else ""
        size, age = depth["bytes"] / 2**20, depth["oldest_seconds"]
        lines.append(f"spool        {depth['events']:,} events wait ({size:,.1f} MiB, the oldest {age:,.0f} s){parked}")
    return output(args, tables.plain(facts), "\n".join(lines))


def _spool_depth(lake: Lake) -> dict[str, Any] | None:
    """The depth of the spool beside the lake; None if there is none or it cannot be opened (reported before)."""
    folder = lake.folder and lake.folder / "spool"
    if folder is None or not (folder / "spool.sqlite").exists():
        return None
    from lake.spool.spool import Spool

    try:
        spool = Spool(folder)
    except (CouldNot, OSError):
        return None
    try:
        return spool.depth().as_dict()
    finally:
        spool.close()
