"""duplicates: groups of images that show the same view."""

from __future__ import annotations

import argparse

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output, progress


def register(add: Add) -> None:
    p = add("duplicates", _duplicates, "images of the very same view, in groups")
    p.add_argument("--slice", metavar="SLICE", help="look among its images only")
    p.add_argument("--threshold", type=float, metavar="T", help="cosine from which a pair is looked at, -1 to 1")
    p.add_argument("--keep", action="store_true", help="with --threshold: make it the lake's, for training splits and slices, too")  # fmt: skip  # noqa: E501
    p.add_argument("--embedder", metavar="NAME", help="default: the lake's first")
    p.add_argument("--calibrate", action="store_true", help="find and keep this lake's threshold, with planted copies")


def _duplicates(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from embeddings.duplicates import calibration, duplicates, threshold
    from lake import slices
    from lake.access import audit

    opened = open_lake(args)
    if args.calibrate:
        if args.slice or args.threshold is not None:
            raise BadInput("--calibrate finds the lake's threshold: give it without --slice and --threshold")
        done = calibration.calibrate(opened, embedder=args.embedder)
        audit.record(opened, "calibrate duplicates", done.embedder, detail=asdict(done))
        text = (
            f"{done.embedder}: near-duplicates from cosine {done.threshold:.2f} on, which proposes {done.recall:.1%} "
            f"of {done.copies:,} planted copies. {done.kin:.1%} of the sampled images have a near-duplicate in the "
            "lake already; if you know of none, its images look too much alike for this"
        )
        return output(args, asdict(done), text)
    if args.keep:
        if args.threshold is None:
            raise BadInput("--keep makes --threshold the lake's own: give both")
        threshold.save_threshold(opened, args.threshold, embedder=args.embedder)
        audit.record(opened, "keep duplicates", args.embedder or "", detail={"threshold": args.threshold})
    names = slices.members(opened, slices.get(opened, args.slice)).to_pylist() if args.slice else None
    with progress(args, "images") as count:
        found = duplicates.find(opened, names, embedder=args.embedder, threshold=args.threshold, progress=count)
    facts = {
        "groups": found.groups,
        "pairs": [asdict(pair) for pair in found.pairs],
        "spare": found.redundant,
        "looked": found.compared,
        "without_vector": found.without_vector,
        "unseen": found.without_thumbnail,
        "embedder": found.embedder,
        "threshold": found.threshold,
    }
    summary = (
        f"{len(found.groups):,} groups of near-duplicates among {found.compared:,} images, {found.redundant:,} images "
        f"are redundant ({found.embedder}, cosine from {found.threshold:g})"
    )
    lines = [summary]
    if found.without_vector:
        lines.append(f"{found.without_vector:,} images have no vector and were left out")
    if found.without_thumbnail:
        lines.append(f"{found.without_thumbnail:,} pairs have no thumbnail and were compared by their cosine alone")
    lines += [f"{len(group):>5,}  {'  '.join(group)}" for group in found.groups]
    return output(args, facts, "\n".join(lines))
