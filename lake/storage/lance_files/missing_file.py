"""Tells from an error of Lance, Arrow or DuckDB that a file of a table is missing, in words."""

from __future__ import annotations

import re

from lake.errors import CouldNot

_MISSING = re.compile(r"Not found: (\S*?)([^/\s]+)\.lance/((?:data|_versions|_deletions|_indices)/[^\s,:]+)")


def as_error(error: BaseException) -> CouldNot | None:
    """The error to raise in place of `error`; None if it has another cause."""
    found = _MISSING.search(str(error))
    if found is None:
        return None
    return CouldNot(
        f"the file {found[3]} of table {found[2]} is missing, so the lake cannot be read; run: lakeloop doctor"
    )
