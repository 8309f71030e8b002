"""Empty states of pages: what is missing, why, and what to do."""

from __future__ import annotations

from typing import Any

import streamlit as st

from search_app.ui import session
from search_app.ui.text.commands import for_this_lake


def empty(title: str, why: str, command: str | None = None) -> None:
    """An empty state in the middle of the page. `why` is Markdown; `command` is shown for copying."""
    with st.container(horizontal_alignment="center", key="empty"):
        st.space("medium")
        st.subheader(title, anchor=False, text_alignment="center", width="content")
        st.markdown(why, text_alignment="center", width=560)
        if command:
            st.code(command, language="bash", width=560, wrap_lines=True)


def nothing_to_compare(status: dict[str, Any]) -> bool:
    """Whether images or vectors are missing; if so, shows which. `status` is what `lakeloop status` returns."""
    if not status["images"]:
        no_images()
    elif not any(embedder["embedded"] for embedder in status["embedders"]):
        not_embedded()
    else:
        return False
    return True


def no_images() -> None:
    """The lake is empty."""
    empty(
        "This lake has no images yet",
        "Ingest a folder of images or a table of predictions, or let a service send its predictions to this address.",
        for_this_lake("ingest", "FOLDER"),
    )


def not_embedded() -> None:
    """There are images, but no vectors to compare them by."""
    why = "Images are compared by their embeddings. This command computes the missing ones."
    empty("No image has an embedding yet", why, for_this_lake("embed"))


def nothing_passes() -> None:
    """The scope and its filters leave no row."""
    with st.container(horizontal_alignment="center"):
        st.space("medium")
        st.subheader("No image passes the filters", anchor=False, width="content")
        st.caption("Remove a filter above, or clear them all.", width="content")
        if st.button("Clear filters"):
            session.put(**dict.fromkeys(session.SHARED))
            st.rerun()
