"""Commands that a page shows for pasting into a terminal."""

from __future__ import annotations

import shlex

from search_app.ui import session


def for_this_lake(verb: str, *arguments: str) -> str:
    """`lakeloop VERB ARGUMENTS --lake URI`, with this lake's URI."""
    return " ".join(["lakeloop", verb, *arguments, "--lake", shlex.quote(session.lake().uri)])
