"""What every command needs: which lake, one JSON document or text on stdout, a progress bar when a person looks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, CouldNot, LakeloopError

if TYPE_CHECKING:
    from lake.spool.spool import Spool
    from lake.storage.store import Lake

# add(name, run, help, group=None): one more command, with --lake and --json; in a group such as `slice`, or by itself.
Add = Callable[..., argparse.ArgumentParser]


def uri(args: argparse.Namespace) -> str:
    """The lake named by --lake or LAKELOOP_LAKE."""
    uri = args.lake or os.environ.get("LAKELOOP_LAKE")
    if not uri:
        raise BadInput("which lake? give --lake URI or set LAKELOOP_LAKE")
    return str(uri)


def open_lake(args: argparse.Namespace, drain: bool = True) -> Lake:
    """That lake, open. Events that a stopped server left in its spool are brought in first, and stderr is told so."""
    import lake

    spool = _abandoned(uri(args)) if drain else None
    try:
        # Whatever stopped the server may have stopped the machine.
        opened = lake.open(uri(args), unclean=spool is not None)
        for notice in opened.notices:
            print(f"lakeloop: {notice}", file=sys.stderr)
        if spool is not None:
            _drain(opened, spool)
    finally:
        if spool is not None:
            spool.close()
    return opened


def _abandoned(uri: str) -> Spool | None:
    """The spool beside the lake, when events wait in it that no server is going to drain."""
    from lake.spool.spool import Spool, abandoned, beside

    folder = beside(uri)
    try:
        if folder is None or not abandoned(folder):
            return None
        spool = Spool(folder)
    except (CouldNot, OSError) as error:  # a lake one may only read is read as it is
        print(f"lakeloop: a spool is there and cannot be opened: {error}", file=sys.stderr)
        return None
    depth = spool.depth()
    if depth.events or depth.parked:
        return spool
    spool.close()
    return None


def _drain(opened: Lake, spool: Spool) -> None:
    import sqlite3

    from lake.spool.drain import drain

    try:
        report = drain(opened, spool)
    except (LakeloopError, OSError, sqlite3.Error) as error:  # the disk may be full, and the lake still be read
        print(f"lakeloop: what a stopped server left stays in {spool.folder}: {error}", file=sys.stderr)
        return
    if report is not None and report.events:
        print(f"drained {report.events:,} events a stopped server had left", file=sys.stderr)


def output(args: argparse.Namespace, facts: Any, text: str) -> int:
    """Prints the facts as JSON when --json was given, else the text; returns exit code 0."""
    import json

    if args.json:
        print(json.dumps(facts, ensure_ascii=False, allow_nan=False))
    elif text:
        print(text)
    return 0


def progress(args: argparse.Namespace, unit: str, total: int | None = None) -> Any:
    """A context manager giving a function that counts; a bar on stderr when a person is looking."""
    from contextlib import contextmanager

    @contextmanager
    def bar() -> Any:
        if not sys.stderr.isatty():
            yield lambda n: None
            return
        from tqdm import tqdm

        with tqdm(total=total, unit=f" {unit}", file=sys.stderr, leave=False) as shown:
            yield shown.update

    return bar()


def columns(rows: list[list[str]], left: int) -> str:
    """Rows as text, column below column: the first `left` columns begin together, the others end together."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            one.ljust(width) if place < left else one.rjust(width)
            for place, (one, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
