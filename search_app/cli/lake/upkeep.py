"""maintain, forget, backup, restore, doctor, retain: keeping a lake quick, lawful and recoverable."""

from __future__ import annotations

import argparse
import datetime as dt
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output, progress, uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lake.spool.spool import Spool

OLDER_THAN = "remove versions older than this: 2d (the default), 12h, 30m, 0 (all but the newest)"
SPOOL = "a spool of this lake that is not in its folder; again for more"


def register(add: Add) -> None:
    p = add("maintain", _maintain, "merge small files, complete indexes, remove old versions and leftovers")
    p.add_argument("--older-than", type=_span, default="2d", metavar="SPAN", help=OLDER_THAN)

    p = add("forget", _forget, "erase images for good, from every file, and refuse them from now on")
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--image-id", action="append", default=[], metavar="ID", help="again for more")
    which.add_argument("--source", metavar="PATTERN", help="images of rows whose source is like it: *, ?, [a-z]")
    p.add_argument("--reason", metavar="TEXT", help="kept with the tombstones")
    p.add_argument("--spool", action="append", default=[], type=Path, metavar="DIR", help=SPOOL)
    p.add_argument("--alone", action="store_true", help="no other process writes to the lake: remove unfinished files")
    p.add_argument("--yes", action="store_true", help="do not ask")

    p = add("backup", _backup, "copy the lake and its spool as they are now, while they are written to")
    p.add_argument("destination", metavar="DEST", type=Path, help="a new folder, or one file when it ends in .tar")
    p.add_argument("--spool", action="append", default=[], type=Path, metavar="DIR", help=SPOOL)
    p.add_argument("--verify", action="store_true", help="read the backup DEST and compare it with its list, only")
    p.add_argument("--sha256", metavar="HEX", help="with --verify: what `backup` had printed")

    p = add("restore", _restore, "make a lake at --lake from a backup")
    p.add_argument("source", metavar="SRC", type=Path)
    p.add_argument("--forgotten-from", metavar="URI", help="the lake in use: what was erased from it is erased here")
    p.add_argument("--sha256", metavar="HEX", help="refuse any other backup than the one that `backup` printed this of")

    p = add("doctor", _doctor, "find what is wrong with a lake, and the way out")
    p.add_argument("--repair", action="store_true", help="mend what can be mended without losing anything")
    p.add_argument("--full", action="store_true", help="read and hash every image, not a sample of 200")
    p.add_argument("--spool", action="append", default=[], type=Path, metavar="DIR", help=SPOOL)

    p = add("retain", _retain, "let go of old images, thumbnails and vectors; answers stay")
    p.add_argument("--policy", required=True, type=Path, metavar="FILE", help="TOML or JSON")
    p.add_argument("--dry-run", action="store_true", help="say what would fall, and change nothing")
    p.add_argument("--older-than", type=_span, default="2d", metavar="SPAN", help=OLDER_THAN)
    p.add_argument("--spool", action="append", default=[], type=Path, metavar="DIR", help=SPOOL)


def _maintain(args: argparse.Namespace) -> int:
    from lake.storage import schema
    from lake.upkeep import maintenance

    opened = open_lake(args)
    with progress(args, "tables", len(schema.TABLES)) as count:
        report = maintenance.maintain(opened, older_than=args.older_than, progress=count)
    before, after = (report.total(f"bytes_{when}") for when in ("before", "after"))
    text = (
        f"fragments {report.total('fragments_before'):,} -> {report.total('fragments_after'):,}; "
        f"{_mb(before)} -> {_mb(after)}; {report.total('versions_removed'):,} versions and "
        f"{report.total('leftovers_removed'):,} leftover files removed; {report.seconds:.1f} s"
    )
    lines = [text] + [f"kept by its tag: {name}" for name in report.tagged]
    return output(args, report.as_dict(), "\n".join(lines))


def _forget(args: argparse.Namespace) -> int:
    from lake.upkeep import erasure
    from search_app.backend import query_images

    opened = open_lake(args, drain=False)
    with _spools(args) as spools:
        chosen = erasure.select(opened, args.image_id, args.source, spools)
        if not chosen:
            raise BadInput(f"no image has a source like {args.source!r}")
        there = len(opened.known("predictions", "image_id", chosen))
        said = f"erase {len(chosen):,} images ({there:,} in the lake) for good"
        if not args.yes and not _agreed(said):
            raise BadInput(f"nothing was erased; add --yes to {said}")
        report = erasure.forget(opened, chosen, spools=spools, reason=args.reason, alone=args.alone)
    queries = query_images.beside(opened.uri).clear()
    rows = ", ".join(f"{count:,} of {name}" for name, count in report.rows.items() if count)
    lines = [f"erased {len(report.image_ids):,} images: rows {rows or 'none'}; {report.spool_events:,} waiting events"]
    lines += [f"slice {name} had some of them and keeps their ids, as erased" for name in report.slices]
    lines += [f"cluster tree {name} had some of them and is smaller now" for name in report.trees]
    lines += [f"search {name} began with some of them and does no longer" for name in report.searches]
    lines += [f"STILL HELD by the tagged version {name}" for name in report.tagged]
    lines += [
        f"STILL HELD, perhaps, by the unfinished write {name}; run this again later" for name in report.unfinished
    ]
    lines += [
        f"the backup {b['path']} of {b['made_at'][:16]} was made while they were there"
        + ("" if b["there"] else " (it is not there any more)")
        for b in report.backups
    ]
    output(args, report.as_dict() | {"query_images": queries}, "\n".join(lines))
    return 0 if report.complete else 1


def _backup(args: argparse.Namespace) -> int:
    from lake.backups import backup, restore

    if args.verify:
        with progress(args, "B") as count:
            found = restore.verify(args.destination, args.sha256, count)
        facts = {"path": str(args.destination), "sha256": found.sha256, "files": len(found.files), "bytes": found.bytes}
        text = f"{args.destination} is whole: {len(found.files):,} files, {_mb(found.bytes)}, sha256 {found.sha256}"
        return output(args, facts | {"made_at": found.facts.get("made_at")}, text)
    if args.sha256:
        raise BadInput("--sha256 goes with --verify")
    opened = open_lake(args, drain=False)
    with progress(args, "B") as count:
        made = backup.backup(opened, args.destination, spools=_spool_folders(args), progress=count)
    for name in made.left_out:
        print(f"left out, for its name or because it is no plain file: {name}", file=sys.stderr)
    text = (
        f"{made.path}: {made.files:,} files, {_mb(made.bytes)}, {made.spool_events:,} waiting events; "
        f"{made.seconds:.1f} s\nsha256 {made.sha256}"
    )
    return output(args, made.as_dict(), text)


def _restore(args: argparse.Namespace) -> int:
    import lake
    from lake.backups import restore

    other = lake.open(args.forgotten_from) if args.forgotten_from else None
    with progress(args, "B") as count:
        done = restore.restore(args.source, uri(args), forgotten_from=other, expect=args.sha256, progress=count)
    lines = [f"{done.lake}: {done.files:,} files, {_mb(done.bytes)}, as of {done.made_at[:16]}; {done.seconds:.1f} s"]
    if done.drained:
        lines.append(f"brought in {done.drained:,} events that had waited in the spool")
    if done.waiting:
        lines.append(f"{done.waiting:,} events could not be brought in and wait in its spool; see: lakeloop doctor")
    if done.erased:
        lines.append(f"erased {done.erased:,} images again that had been erased since")
    return output(args, done.as_dict(), "\n".join(lines))


def _doctor(args: argparse.Namespace) -> int:
    from lake.upkeep import doctor

    with _spools(args) as spools:
        report = doctor.examine(uri(args), spools=spools, repair=args.repair, full=args.full)
    lines = [f"mended: {sentence}" for sentence in report.mended]
    for finding in report.findings:
        lines.append(f"{'WRONG' if finding.severity == 'wrong' else 'note':<6} {finding.what}")
        if finding.remedy:
            lines.append(f"       -> {finding.remedy}")
    looked = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report.checked.items())
    lines.append(f"{'sound' if report.sound else 'not sound'}: looked at {looked or 'nothing'}; {report.seconds:.1f} s")
    output(args, report.as_dict(), "\n".join(lines))
    return 0 if report.sound else 1


def _retain(args: argparse.Namespace) -> int:
    from lake.upkeep import retention

    policy = retention.read_policy(args.policy)
    opened = open_lake(args)
    with _spools(args) as spools:
        report = retention.retain(opened, policy, spools=spools, dry_run=args.dry_run, older_than=args.older_than)
    lines = []
    for kind in ("images", "thumbnails", "vectors"):
        fell = getattr(report, kind)
        if fell.before is not None:
            verb = "would fall" if args.dry_run else "fell"
            lines.append(f"{kind:<11}{fell.items:>12,} {verb}, {_mb(fell.bytes)}; {fell.held:,} are held")
    if report.over_gb:
        lines.append(f"what is held exceeds images.max_gb by {report.over_gb:.3f} GB")
    if not args.dry_run and args.older_than:
        lines.append("the disk has the room once older versions are gone: see --older-than")
    return output(args, report.as_dict(), "\n".join(lines) or "the policy lets go of nothing")


# ---------------------------------------------------------------------------------------------------------


def _span(text: str) -> dt.timedelta:
    found = re.fullmatch(r"(\d{1,5})\s*([dhm]?)", text)
    if not found or (not found[2] and found[1].strip("0")):
        raise argparse.ArgumentTypeError(f"{text!r} is no span: write 2d, 12h, 30m or 0")
    return int(found[1]) * {"d": dt.timedelta(days=1), "h": dt.timedelta(hours=1)}.get(
        found[2], dt.timedelta(minutes=1)
    )


def _spool_folders(args: argparse.Namespace) -> list[Path]:
    """The spool in the lake's folder, when there is one, and those that were named."""
    from lake.spool.spool import beside

    own = beside(uri(args))
    found = [own] if own is not None else []
    for folder in args.spool:
        if not (folder / "spool.sqlite").exists():
            raise BadInput(f"--spool {folder}: there is no spool")
    return [f for f in [*found, *args.spool] if (f / "spool.sqlite").exists()]


@contextmanager
def _spools(args: argparse.Namespace) -> Iterator[list[Spool]]:
    """Those, open."""
    from lake.spool.spool import Spool

    opened: list[Spool] = []
    try:
        for folder in _spool_folders(args):
            opened.append(Spool(folder))
        yield opened
    finally:
        for spool in opened:
            spool.close()


def _agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        return False
    print(f"{what}? It cannot be undone. [yes/no] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
