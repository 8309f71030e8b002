"""Valid names of slices and tags, and the error for an unknown name, with the nearest known ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from lake.errors import BadInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
# A tag begins with a letter: NAME@3 is a version.
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}\Z")
MOST_NAMED = 8


def check_name(name: str, kind: str = "slice") -> None:
    """Raises BadInput if it is not a valid name of a slice, or of another `kind` of thing."""
    if not _NAME.match(name):
        raise BadInput(f"{kind} name {name!r}: use up to 100 letters, digits, dots, dashes and underscores")


def check_tag(tag: str) -> None:
    """Raises BadInput if it is not a valid tag."""
    if not _TAG.match(tag):
        raise BadInput(f"tag {tag!r}: begin with a letter; use up to 100 letters, digits, dots, dashes, underscores")


def unknown(kind: str, name: str, known: Iterable[str], holder: str = "the lake") -> BadInput:
    """The error for an unknown name: it lists names with similar spelling, and known ones."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return BadInput(f"no {kind} {name!r}; {hint}{holder} has {', '.join(names[:MOST_NAMED]) or 'none'}{more}")
