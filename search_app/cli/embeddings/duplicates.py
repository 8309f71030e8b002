"""duplicates: groups of images that show the same view."""

from __future__ import annotations

import argparse

from lake.errors import BadInput
from search_app.cli.foreground import add_detach, run_job
from search_app.cli.terminal import Add, number, open_lake, output


def register(add: Add) -> None:
    p = add("duplicates", _duplicates, "find groups of near-duplicates: images of the same view", writes=True)
    p.add_argument("--slice", metavar="SLICE", help="only images of this slice")
    p.add_argument("--threshold", type=number, metavar="T", help="least cosine similarity of a pair, -1 to 1")
    p.add_argument("--keep", action="store_true", help="with --threshold: store it as the threshold of the lake, also for training splits and slices")  # fmt: skip  # noqa: E501
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")
    p.add_argument(
        "--calibrate", action="store_true", help="measure and store the threshold of the lake, with planted copies"
    )
    add_detach(p)


def _duplicates(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from embeddings.duplicates import threshold, threshold_calibration
    from lake.access import audit

    lake = open_lake(args)
    if args.calibrate:
        if args.detach:
            raise BadInput("--calibrate runs at once; give it without --detach")
        if args.slice or args.threshold is not None:
            raise BadInput("--calibrate measures the threshold of the lake: give it without --slice and --threshold")
        result = threshold_calibration.calibrate(lake, embedder=args.embedder)
        audit.record(lake, "calibrate duplicates", result.embedder, detail=asdict(result))
        text = (
            f"{result.embedder}: near-duplicates have a cosine from {result.threshold:.2f} on. This finds "
            f"{result.recall:.1%} of {result.copies:,} planted copies. {result.kin:.1%} of the sampled "
            "images already have a near-duplicate in the lake; if you know of none, the images look too similar for "
            "this method"
        )
        return output(args, asdict(result), text)
    if args.keep:
        if args.threshold is None:
            raise BadInput("--keep needs --threshold")
        threshold.save_threshold(lake, args.threshold, embedder=args.embedder)
        audit.record(lake, "keep duplicates", args.embedder or "", detail={"threshold": args.threshold})
    options = {"embedder": args.embedder, "threshold": args.threshold}
    copies = run_job(args, lake, "duplicates", {"slice": args.slice, **options})
    if copies is None:
        return 0
    facts = {
        "groups": copies.groups,
        "pairs": [asdict(pair) for pair in copies.pairs],
        "spare": copies.redundant,
        "looked": copies.compared,
        "without_vector": copies.without_vector,
        "unseen": copies.without_thumbnail,
        "embedder": copies.embedder,
        "threshold": copies.threshold,
    }
    summary = f"{copies.compared:,} images, {copies.redundant:,} redundant images"
    method = f"{copies.embedder}, cosine from {copies.threshold:g}"
    lines = [f"{len(copies.groups):,} groups of near-duplicates among {summary} ({method})"]
    if copies.without_vector:
        lines.append(f"{copies.without_vector:,} images have no vector and are left out")
    if copies.without_thumbnail:
        lines.append(f"{copies.without_thumbnail:,} pairs have no thumbnail: only their cosine was compared")
    lines += [f"{len(group):>5,}  {'  '.join(group)}" for group in copies.groups]
    return output(args, facts, "\n".join(lines))
