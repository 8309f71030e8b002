"""The query tray: what is searched for, and the place to drop, paste or choose an image.

The browser posts an image's bytes to /v1/queries itself; Python gets the query's id and never the bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import streamlit as st

SHOWN = 8

_here = files("search_app.ui.components.dropzone")
_component = st.components.v2.component(
    "lakeloop_dropzone",
    html='<div class="tray"></div>',
    css=(_here / "dropzone.css").read_text("utf-8"),
    js=(_here / "dropzone.js").read_text("utf-8"),
)


@dataclass(frozen=True)
class Change:
    """What the user did: `uploaded` is a new query id, `removed` an exemplar's id taken out."""

    uploaded: str | None = None
    removed: str | None = None


def query_tray(query: str, ids: Sequence[str], key: str = "tray") -> Change | None:
    """Show the uploaded query image and the picked images; returns a change, or None."""
    exemplars = [{"id": query, "url": f"/v1/queries/{query}"}] if query else []
    exemplars += [{"id": one, "url": f"/v1/thumbnails/{one}"} for one in ids]
    more = max(0, len(exemplars) - SHOWN)
    result = _component(
        key=key,
        data={"exemplars": exemplars[:SHOWN], "more": more},
        on_uploaded_change=_nothing,
        on_removed_change=_nothing,
    )
    if result.uploaded or result.removed:
        return Change(result.uploaded, result.removed)
    return None


def _nothing() -> None:
    """Streamlit offers a trigger only when a callback is named for it."""
