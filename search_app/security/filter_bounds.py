"""The door for filters and definitions of slices from the network: `lake.sql.where.check_foreign` for each filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.slices import definition as definitions
from lake.sql import where

if TYPE_CHECKING:
    from lake.storage.store import Lake

# Filters and slices in one definition of a slice: each is a query.
MOST_PARTS = 100


def check(lake: Lake, text: str) -> None:
    """Raises BadInput, with the reason, unless the text is a filter of allowed parts only.

    Raises QueryStopped if too many filters wait to be checked.
    """
    where.check_foreign(lake, text)


def check_definition(lake: Lake, definition: Any) -> None:
    """Raises BadInput for a slice's definition with too many parts, or with a filter that `check` refuses."""
    parts = [definitions.check(definition)]
    for part in parts:  # grows meanwhile
        parts += [
            inner for kind in ("union", "intersect") for inner in part.get(kind, ()) if not isinstance(inner, str)
        ]
    count = len(parts) + len(definitions.references(parts[0]))
    if count > MOST_PARTS:
        raise BadInput(f"the definition has {count:,} parts; it may have at most {MOST_PARTS}")
    for part in parts:
        if "where" in part:
            check(lake, part["where"])
