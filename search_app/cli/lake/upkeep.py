"""maintain, forget, backup, restore, doctor, retain: maintenance, erasure and recovery of a lake."""

from __future__ import annotations

import argparse
import datetime as dt
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lake.errors import BadInput
from search_app.cli.foreground import add_detach, run_job
from search_app.cli.terminal import Add, open_lake, output, progress, uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lake.spool.spool import Spool

OLDER_THAN = "remove versions older than this: 2d (the default), 12h, 30m, 0 (all but the newest)"
SPOOL = "a spool of this lake outside its folder; repeat for more"


def register(add: Add) -> None:
    p = add(
        "maintain",
        _maintain,
        "merge small files, complete indexes, remove old versions and leftover files",
        writes=True,
    )
    p.add_argument("--older-than", type=_span, default="2d", metavar="SPAN", help=OLDER_THAN)
    add_detach(p)

    p = add("forget", _forget, "erase images from every file for good, and refuse them from now on", writes=True)
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--image-id", action="append", default=[], metavar="ID", help="repeat for more")
    which.add_argument("--source", metavar="PATTERN", help="images whose source matches: *, ?, [a-z]")
    p.add_argument("--reason", metavar="TEXT", help="stored with the tombstones")
    p.add_argument("--spool", action="append", default=[], type=Path, metavar="DIR", help=SPOOL)
    p.add_argument(
        "--alone", action="store_true", help="no other process writes to the lake: also remove unfinished files"
    )
    p.add_argument("--yes", action="store_true", help="do not ask for confirmation")

    p = add("backup", _backup, "copy the lake and its spool as they are now; others may keep writing", writes=True)
    p.add_argument("destination", metavar="DEST", type=Path, help="a new folder, or one file if it ends in .tar")
    p.add_argument("--spool", action="append", default=[], type=Path, metavar="DIR", help=SPOOL)
    p.add_argument("--verify", action="store_true", help="only read the backup DEST and compare it with its list")
    p.add_argument("--sha256", metavar="HEX", help="with --verify: the SHA-256 that `backup` printed")

    p = add("restore", _restore, "make a new lake at --lake from a backup", writes=True)
    p.add_argument("source", metavar="SRC", type=Path)
    p.add_argument(
        "--forgotten-from", metavar="URI", help="the lake in use: images erased from it are also erased here"
    )
    p.add_argument("--sha256", metavar="HEX", help="refuse a backup with another SHA-256 than `backup` printed")

    p = add("doctor", _doctor, "find errors in a lake and their remedies", writes=True)
    p.add_argument("--repair", action="store_true", help="set aside what cannot be read, keep all the rest")
    p.add_argument(
        "--restore-from", type=Path, metavar="BACKUP", help="fill from a backup what a repair had to set aside"
    )
    p.add_argument("--deep", action="store_true", help="read every file and hash every image, not a sample of 200")
    p.add_argument("--spool", action="append", default=[], type=Path, metavar="DIR", help=SPOOL)

    p = add("retain", _retain, "drop old images, thumbnails and vectors; predictions stay", writes=True)
    p.add_argument("--policy", required=True, type=Path, metavar="FILE", help="TOML or JSON")
    p.add_argument("--dry-run", action="store_true", help="only report what would be dropped")
    p.add_argument("--older-than", type=_span, default="2d", metavar="SPAN", help=OLDER_THAN)
    p.add_argument("--spool", action="append", default=[], type=Path, metavar="DIR", help=SPOOL)


def _maintain(args: argparse.Namespace) -> int:
    lake = open_lake(args)
    report = run_job(args, lake, "maintain", {"older_than": args.older_than.total_seconds()})
    if report is None:
        return 0
    before, after = (report.total(f"bytes_{when}") for when in ("before", "after"))
    text = (
        f"fragments {report.total('fragments_before'):,} -> {report.total('fragments_after'):,}; "
        f"{_mb(before)} -> {_mb(after)}; {report.total('versions_removed'):,} versions and "
        f"{report.total('leftovers_removed'):,} leftover files removed; {report.seconds:.1f} s"
    )
    lines = [text] + [f"kept because of its tag: {name}" for name in report.tagged]
    return output(args, report.as_dict(), "\n".join(lines))


def _forget(args: argparse.Namespace) -> int:
    from lake.upkeep import erasure
    from search_app.backend import query_images

    lake = open_lake(args, drain=False)
    with _spools(args) as spools:
        image_ids = erasure.select(lake, args.image_id, args.source, spools)
        if not image_ids:
            raise BadInput(f"no image has a source that matches {args.source!r}")
        stored = len(lake.known("samples", "image_id", image_ids))
        action = f"erase {len(image_ids):,} images ({stored:,} in the lake) for good"
        if not args.yes and not _confirmed(action):
            raise BadInput(f"nothing was erased; add --yes to {action}")
        report = erasure.forget(lake, image_ids, spools=spools, reason=args.reason, alone=args.alone)
    queries = query_images.beside(lake.uri).clear()
    rows = ", ".join(f"{count:,} of {name}" for name, count in report.rows.items() if count)
    lines = [f"erased {len(report.image_ids):,} images: rows {rows or 'none'}; {report.spool_events:,} waiting events"]
    lines += [f"slice {name} had some of them and keeps their ids, marked as erased" for name in report.slices]
    lines += [f"cluster tree {name} had some of them and is smaller now" for name in report.trees]
    lines += [f"search {name} had some of them as examples; they are removed" for name in report.searches]
    if report.jobs:
        lines.append(f"{report.jobs} rows and logs of jobs named some of them; their ids are removed")
    lines += [f"STILL HELD by the tagged version {name}" for name in report.tagged]
    lines += [
        f"PERHAPS STILL HELD by the unfinished write {name}; run this command again later" for name in report.unfinished
    ]
    lines += [
        f"the backup {b['path']} of {b['made_at'][:16]} was made while they were in the lake"
        + ("" if b["there"] else " (it is no longer there)")
        for b in report.backups
    ]
    output(args, report.as_dict() | {"query_images": queries}, "\n".join(lines))
    return 0 if report.complete else 1


def _backup(args: argparse.Namespace) -> int:
    from lake.backups import backup, restore

    if args.verify:
        with progress(args, "B") as count:
            contents = restore.verify(args.destination, args.sha256, count)
        files, sha256 = len(contents.files), contents.sha256
        facts = {"path": str(args.destination), "sha256": sha256, "files": files, "bytes": contents.bytes}
        text = f"{args.destination} is complete: {files:,} files, {_mb(contents.bytes)}, sha256 {sha256}"
        return output(args, facts | {"made_at": contents.facts.get("made_at")}, text)
    if args.sha256:
        raise BadInput("--sha256 needs --verify")
    lake = open_lake(args, drain=False)
    with progress(args, "B") as count:
        report = backup.backup(lake, args.destination, spools=_spool_folders(args), progress=count)
    if not report.recorded:
        print("the lake can only be read: its audit log does not have this backup", file=sys.stderr)
    for name in report.left_out:
        print(f"left out, because of its name or because it is not a plain file: {name}", file=sys.stderr)
    text = (
        f"{report.path}: {report.files:,} files, {_mb(report.bytes)}, {report.spool_events:,} waiting events; "
        f"{report.seconds:.1f} s\nsha256 {report.sha256}"
    )
    return output(args, report.as_dict(), text)


def _restore(args: argparse.Namespace) -> int:
    import lake
    from lake.backups import restore

    other = lake.open(args.forgotten_from) if args.forgotten_from else None
    with progress(args, "B") as count:
        report = restore.restore(args.source, uri(args), forgotten_from=other, expect=args.sha256, progress=count)
    size = f"{report.files:,} files, {_mb(report.bytes)}"
    lines = [f"{report.lake}: {size}, as of {report.made_at[:16]}; {report.seconds:.1f} s"]
    if report.drained:
        lines.append(f"drained {report.drained:,} events that waited in the spool")
    if report.waiting:
        lines.append(f"{report.waiting:,} events could not be drained and stay in its spool; see: lakeloop doctor")
    if report.erased:
        lines.append(f"erased {report.erased:,} images that were erased after the backup")
    return output(args, report.as_dict(), "\n".join(lines))


def _doctor(args: argparse.Namespace) -> int:
    from lake.upkeep import doctor

    filled = []
    if args.restore_from is not None:
        from lake.backups import refill

        filled = refill.refill(open_lake(args, drain=False), args.restore_from)
    with _spools(args) as spools:
        report = doctor.examine(uri(args), spools=spools, repair=args.repair, deep=args.deep)
    report.mended = filled + report.mended
    lines = [f"repaired: {sentence}" for sentence in report.mended]
    for finding in report.findings:
        lines.append(f"{'WRONG' if finding.severity == 'wrong' else 'note':<6} {finding.what}")
        if finding.remedy:
            lines.append(f"       -> {finding.remedy}")
    checked = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report.checked.items())
    lines.append(f"checked {checked or 'nothing'}; {report.seconds:.1f} s")
    lines.append(report.advice)
    output(args, report.as_dict(), "\n".join(lines))
    return 0 if report.sound else 1


def _retain(args: argparse.Namespace) -> int:
    from lake.upkeep import retention

    policy = retention.read_policy(args.policy)
    lake = open_lake(args)
    with _spools(args) as spools:
        report = retention.retain(lake, policy, spools=spools, dry_run=args.dry_run, older_than=args.older_than)
    lines = []
    for kind in ("images", "thumbnails", "vectors"):
        dropped = getattr(report, kind)
        if dropped.before is not None:
            verb = "would be dropped" if args.dry_run else "dropped"
            lines.append(f"{kind:<11}{dropped.items:>12,} {verb}, {_mb(dropped.bytes)}; {dropped.held:,} are held")
    if report.over_gb:
        lines.append(f"the images that stay exceed images.max_gb by {_mb(int(report.over_gb * 1e9))}")
    if report.freed_bytes is not None:
        lines.append(f"the files of the lake are {_mb(report.freed_bytes)} smaller")
    dropped_bytes = sum(d.bytes for d in (report.images, report.thumbnails, report.vectors))
    if not args.dry_run and dropped_bytes > (report.freed_bytes or 0):
        lines.append(
            "the rest is free once no version names the files (see --older-than), and once more than half of a file "
            "is dropped: then maintain or retain rewrites it"
        )
    return output(args, report.as_dict(), "\n".join(lines) or "the policy drops nothing")


# ---------------------------------------------------------------------------------------------------------


def _span(text: str) -> dt.timedelta:
    match_ = re.fullmatch(r"(\d{1,5})\s*([dhm]?)", text)
    if not match_ or (not match_[2] and match_[1].strip("0")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a span: write 2d, 12h, 30m or 0")
    unit = {"d": dt.timedelta(days=1), "h": dt.timedelta(hours=1)}.get(match_[2], dt.timedelta(minutes=1))
    return int(match_[1]) * unit


def _spool_folders(args: argparse.Namespace) -> list[Path]:
    """The spool in the folder of the lake, if it exists, and those of --spool."""
    from lake.spool.spool import beside

    own = beside(uri(args))
    folders = [own] if own is not None else []
    for folder in args.spool:
        if not (folder / "spool.sqlite").exists():
            raise BadInput(f"--spool {folder} is not a spool")
    return [f for f in [*folders, *args.spool] if (f / "spool.sqlite").exists()]


@contextmanager
def _spools(args: argparse.Namespace) -> Iterator[list[Spool]]:
    """Opens these spools."""
    from lake.spool.spool import Spool

    spools: list[Spool] = []
    try:
        for folder in _spool_folders(args):
            spools.append(Spool(folder))
        yield spools
    finally:
        for spool in spools:
            spool.close()


def _confirmed(action: str) -> bool:
    if not sys.stdin.isatty():
        return False
    print(f"{action}? You cannot undo it. [yes/no] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
