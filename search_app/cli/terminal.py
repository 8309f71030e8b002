"""Shared parts of all commands: which lake to open, text or JSON on stdout, progress bars."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, CouldNot, LakeloopError

if TYPE_CHECKING:
    from lake.spool.spool import Spool
    from lake.storage.store import Lake

# add(name, run, help, group=None, writes=False): adds a command with --lake and --json, in a group such as `slice` or
# at the top. One that does not say that it `writes` cannot: `open_lake` gives it a lake that refuses to.
Add = Callable[..., argparse.ArgumentParser]


def number(text: str) -> float:
    """The type of an option that takes a number: not NaN, which is never reached, and not infinity: leave it out."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def uri(args: argparse.Namespace) -> str:
    """The lake named by --lake or LAKELOOP_LAKE."""
    uri = args.lake or os.environ.get("LAKELOOP_LAKE")
    if not uri:
        raise BadInput("no lake: give --lake URI or set LAKELOOP_LAKE")
    return str(uri)


def open_lake(args: argparse.Namespace, drain: bool = True) -> Lake:
    """Opens that lake. Before, it drains events that a stopped server left in the spool, and reports that on stderr.

    A command that does not say that it writes can only read it.
    """
    import lake
    from lake.without_pandas import start_without_pandas

    start_without_pandas()
    spool = _abandoned(uri(args)) if drain else None
    try:
        notices = []
        if spool is not None:  # events left in it may mean that the machine stopped, too
            from lake.upkeep import at_start

            notices = at_start.mend(uri(args))
        opened = lake.open(uri(args))
        for notice in notices + opened.notices:
            print(f"lakeloop: {notice}", file=sys.stderr)
        if spool is not None:
            _drain(opened, spool)
    finally:
        if spool is not None:
            spool.close()
    if not args.writes:
        opened.guard = _refuse
    return opened


def full_ids(lake: Lake, words: list[str]) -> list[str]:
    """The ids of images or predictions that the words are, or begin. Raises BadInput unless each begins just one."""
    from lake.storage.vectors import full_id

    return [full_id(lake, word) for word in words]


def _refuse() -> None:
    raise AssertionError("a command that does not say that it writes has tried to")


def _abandoned(uri: str) -> Spool | None:
    """The spool beside the lake if it has waiting events and no server drains it; else None."""
    from lake.spool.spool import Spool, abandoned, beside

    folder = beside(uri)
    try:
        if folder is None or not abandoned(folder):
            return None
        spool = Spool(folder)
    except (CouldNot, OSError) as error:  # a read-only lake can still be read
        print(f"lakeloop: cannot open the spool: {error}", file=sys.stderr)
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
    except (LakeloopError, OSError, sqlite3.Error) as error:  # the lake can be read even if the disk is full
        print(f"lakeloop: events of a stopped server stay in {spool.folder}: {error}", file=sys.stderr)
        return
    if report is not None and report.events:
        print(f"drained {report.events:,} events of a stopped server", file=sys.stderr)


def output(args: argparse.Namespace, facts: Any, text: str) -> int:
    """Prints `facts` as JSON with --json, else `text`. Returns exit code 0.

    Names and texts may be anybody's: what a terminal would obey is replaced.
    """
    import json

    from lake.sql import tables

    if args.json:
        print(json.dumps(facts, ensure_ascii=False, allow_nan=False))
    elif text:
        print("\n".join(map(tables.printable, text.split("\n"))))
    return 0


def progress(args: argparse.Namespace, unit: str, total: int | None = None) -> Any:
    """A context manager that gives a counting function. It shows a bar on stderr if stderr is a terminal."""
    from contextlib import contextmanager

    @contextmanager
    def bar() -> Any:
        if not sys.stderr.isatty():
            yield lambda n: None
            return
        from tqdm import tqdm

        with tqdm(total=total, unit=f" {unit}", file=sys.stderr, leave=False) as tqdm_bar:
            yield tqdm_bar.update

    return bar()


def columns(rows: list[list[str]], left: int) -> str:
    """The rows as a text table: the first `left` columns are left-aligned, the others right-aligned."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
