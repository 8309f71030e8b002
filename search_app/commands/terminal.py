"""What every command needs: which lake, one JSON document or text on stdout, a progress bar when a person looks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput

if TYPE_CHECKING:
    from lake.store import Lake

# add(name, run, help, group=None): one more command, with --lake and --json; in a group such as `slice`, or by itself.
Add = Callable[..., argparse.ArgumentParser]


def uri(a: argparse.Namespace) -> str:
    """The lake named by --lake or LAKELOOP_LAKE."""
    uri = a.lake or os.environ.get("LAKELOOP_LAKE")
    if not uri:
        raise BadInput("which lake? give --lake URI or set LAKELOOP_LAKE")
    return str(uri)


def open_lake(a: argparse.Namespace) -> Lake:
    """That lake, open."""
    import lake

    return lake.open(uri(a))


def answer(a: argparse.Namespace, facts: Any, text: str) -> int:
    """Prints the facts as JSON when --json was given, else the text; returns exit code 0."""
    import json

    if a.json:
        print(json.dumps(facts, ensure_ascii=False, allow_nan=False))
    elif text:
        print(text)
    return 0


def progress(a: argparse.Namespace, unit: str, total: int | None = None) -> Any:
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
