"""The query tray: the examples of a search, and the place to drop, paste or choose an image.

The browser posts the image to /v1/queries itself. Python gets the id of the query, never the bytes.
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
    """What the user did: `uploaded` is the id of a new query image, `removed` the id of a removed example."""

    uploaded: str | None = None
    removed: str | None = None


def query_tray(query: str, ids: Sequence[str], key: str = "tray") -> Change | None:
    """Shows the uploaded query image and the selected images; returns a change, or None."""
    examples = [{"id": query, "url": f"/v1/queries/{query}"}] if query else []
    examples += [{"id": id, "url": f"/v1/thumbnails/{id}"} for id in ids]
    more = max(0, len(examples) - SHOWN)
    result = _component(
        key=key,
        data={"exemplars": examples[:SHOWN], "more": more},
        on_uploaded_change=_nothing,
        on_removed_change=_nothing,
    )
    if result.uploaded or result.removed:
        return Change(result.uploaded, result.removed)
    return None


def _nothing() -> None:
    """Streamlit offers a trigger only when a callback is named for it."""
