"""init, ingest, embed, status: making a lake, filling it, looking what is in it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, CouldNot
from search_app.cli.terminal import Add, open_lake, output, progress, uri

if TYPE_CHECKING:
    from pathlib import Path

    from embeddings.backfill.backfill import BackfillReport
    from lake.storage.store import EmbedderRecord, Lake


# As `lake.ingest.sources.LAYOUTS` has them, which a parser need not import.
_LAYOUTS = (
    *("auto", "folder", "imagefolder", "table", "coco", "yolo", "voc", "metadata"),
    *("webdataset", "parquet", "lance"),
)


def register(add: Add) -> None:
    p = add("init", _init, "make an empty lake")
    p.add_argument("--embedder", action="append", metavar="NAME", help="again for more; the first is the default")
    p.add_argument("--column", action="append", metavar="NAME:TYPE", help="promote a metadata column (string, int, float, bool, timestamp)")  # fmt: skip  # noqa: E501

    p = add("ingest", _ingest, "bring in images, a prediction log, or a data set in any format")
    p.add_argument("path", metavar="PATH")
    p.add_argument("--layout", choices=_LAYOUTS, default="auto")
    p.add_argument("--model", metavar="NAME", help="a data set's boxes, masks and scores are this model's answers, not labels")  # fmt: skip  # noqa: E501
    p.add_argument("--model-version", metavar="VERSION")

    p = add("embed", _embed, "give every image that lacks one a vector")
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first; a new one is added to the lake")
    p.add_argument("--weights", metavar="FILE", help="safetensors, or a .pth / .pt (see --trust-sha256)")
    p.add_argument("--retrained", metavar="NAME[@V]|RUN", help="a fine-tuned classifier's features, as an embedder of their own")  # fmt: skip  # noqa: E501
    p.add_argument("--trust-sha256", metavar="HEX", help="the SHA-256 of a .pth / .pt you know the origin of")
    p.add_argument("--engine", choices=("auto", "torch", "openvino"), default="auto")
    p.add_argument("--watch", action="store_true", help="go on with what arrives, until interrupted; --json: a line a round")  # fmt: skip  # noqa: E501
    p.add_argument("--order", choices=("oldest", "newest", "sampled"), default="oldest", help="whose turn is first")

    add("status", _status, "what is in the lake")


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
    made = lake.create(uri(args), embedders=list(dict.fromkeys(names)), columns=columns)
    audit.record(made, "init", made.uri, detail={"embedders": names, "columns": columns})
    records = [{"name": r.name, "column": r.column} for r in made.embedders()]
    facts = {"lake": made.uri, "embedders": records, "columns": columns}
    output(args, facts, f"made {made.uri} with embedder {', '.join(r['name'] for r in records)}")


def _ingest(args: argparse.Namespace) -> int:
    from pathlib import Path

    from lake.access import audit
    from lake.formats.annotation import ModelName
    from lake.ingest import sources
    from lake.ingest.ingest import ingest

    if args.model_version and not args.model:
        raise BadInput("--model-version says nothing without --model")

    opened = open_lake(args)
    layout = sources.resolve(Path(args.path), args.layout)
    if args.layout == "auto":
        print(f"reading {args.path} as layout {layout}", file=sys.stderr)
    audit.record(opened, "ingest", args.path, detail={"layout": layout})
    with progress(args, "images") as count:
        report = ingest(opened, args.path, layout, model=ModelName(args.model, args.model_version), progress=count)
    r = report.as_dict()
    for bad in report.rejected[:20]:
        print(f"rejected {bad['source']}: {bad['reason']}", file=sys.stderr)
    if len(report.rejected) > 20:
        print(f"... and {len(report.rejected) - 20} more (--json lists all)", file=sys.stderr)
    readable = report.images_new + report.images_known + report.predictions_new + report.predictions_known
    if not readable:
        raise BadInput(f"nothing readable in {args.path} ({len(report.rejected)} rejected)")
    text = (
        f"images {report.images_new:,} new, {report.images_known:,} known; "
        f"predictions {report.predictions_new:,} new, {report.predictions_known:,} known; "
        f"labels {report.labels_new:,} new; rejected {len(report.rejected):,}; {report.seconds:.1f} s"
    )
    return output(args, r, text)


def _embed(args: argparse.Namespace) -> int:
    from pathlib import Path

    from embeddings.backfill.backfill import BackfillReport, backfill
    from embeddings.embedders import embedder as embedders
    from lake.access import audit
    from lake.analytics import summary

    opened = open_lake(args)
    if args.retrained:
        from training.models import retrained_embedder

        if args.weights:
            raise BadInput("--retrained and --weights contradict each other: weights come from one of them")
        args.embedder = retrained_embedder.register(opened, args.retrained, args.embedder).name
    known = args.embedder is None or any(r.name == args.embedder for r in opened.embedders())
    record = embedders.record_of(opened, args.embedder) if known else embedders.new_record(args.embedder)
    file = Path(args.weights) if args.weights else None
    if args.watch:
        return _watch(args, opened, record, file)
    left = summary.embedding_progress(opened, [record])[0]
    total = left["missing"]
    if total == 0 and record.dim is not None and file is None:  # without loading the network
        never = {reason: left[reason] for reason in ("without_bytes", "unreadable")}
        return _embedded(args, BackfillReport(record.name, **never))
    model = embedders.for_lake(
        opened, record, file=file, trust_sha256=args.trust_sha256, engine=args.engine, images=total
    )
    audit.record(opened, "embed", record.name, detail={"missing": total})
    with progress(args, "images", total) as count:
        report = backfill(opened, record, model, file=file, order=args.order, progress=count)
    return _embedded(args, report)


def _watch(args: argparse.Namespace, opened: Lake, record: EmbedderRecord, file: Path | None) -> int:
    from embeddings.backfill import watch_process
    from embeddings.embedders import embedder as embedders

    trust, images = args.trust_sha256, watch_process.IMAGES
    model = embedders.for_lake(opened, record, file=file, trust_sha256=trust, engine=args.engine, images=images)
    print(f"embedding what arrives with {record.name}, {args.order} first; Ctrl-C ends it", file=sys.stderr)
    said = watch_process.print_json if args.json else watch_process.LagPrinter()
    watch_process.run(opened, record, model, order=args.order, file=file, report=said)
    return 0


def _embedded(args: argparse.Namespace, report: BackfillReport) -> int:
    for image, reason in list(report.reasons.items())[:20]:
        print(f"failed {image}: {reason}", file=sys.stderr)
    names = ("embedder", "embedded", "failed", "without_bytes", "unreadable", "images_per_second", "seconds")
    bare = f", {report.without_bytes:,} without bytes" if report.without_bytes else ""
    broken = f", {report.unreadable:,} unreadable" if report.unreadable else ""
    text = (
        f"{report.embedder}: {report.embedded:,} embedded, {report.failed:,} failed{bare}{broken}; "
        f"{report.seconds:.1f} s ({report.images_per_second:.1f} images/s)"
    )
    return output(args, {n: getattr(report, n) for n in names}, text)


def _status(args: argparse.Namespace) -> int:
    from lake.analytics import summary
    from lake.sql import tables

    opened = open_lake(args)
    facts = summary.status(opened)
    waiting = _spool(opened)
    if waiting is not None:
        facts["spool"] = waiting
    lines = [
        f"lake         {facts['lake']}",
        *(f"{name:<12} {facts[name]:,}" for name in ("images", "predictions", "answers", "labels", "slices")),
    ]
    for e in facts["embedders"]:
        left = f", {e['missing']:,} to go: lakeloop embed --embedder {e['name']}" if e["missing"] else ""
        lines.append(f"embedder     {e['name']}: {e['embedded']:,} images embedded{left}")
    for m in facts["models"]:
        lines.append(f"model        {m['model']} {m['model_version'] or ''}: {m['answers']:,} answers")
    for reason, images in facts["image_status"].items():
        lines.append(f"no picture   {images:,} images: {reason}")
    if waiting is not None:
        parked = f", {waiting['parked']:,} parked: see lakeloop doctor" if waiting["parked"] else ""
        size, age = waiting["bytes"] / 2**20, waiting["oldest_seconds"]
        lines.append(
            f"spool        {waiting['events']:,} events wait ({size:,.1f} MiB, the oldest {age:,.0f} s){parked}"
        )
    return output(args, tables.plain(facts), "\n".join(lines))


def _spool(opened: Lake) -> dict[str, Any] | None:
    """What waits in the spool beside the lake; None when there is none, or it cannot be opened (said already)."""
    folder = opened.folder and opened.folder / "spool"
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
