"""Words on the screen: user text made safe for markdown, and the designed empty states.

An empty state says what is missing, why, and the one command or click that helps.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

import streamlit as st

from search_app.ui import session


def plain(text: str) -> str:
    """User text (labels, file names, messages) so that markdown shows it letter by letter."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~:$<>&])", r"\\\1", text.replace("\n", " "))


def for_this_lake(verb: str, *arguments: str) -> str:
    """The command a user can paste into a terminal, with this lake's URI."""
    return " ".join(["lakeloop", verb, *arguments, "--lake", shlex.quote(session.lake().uri)])


def empty(title: str, why: str, command: str | None = None) -> None:
    """An empty state in the middle of the page."""
    with st.container(horizontal_alignment="center", key="empty"):
        st.space("medium")
        st.subheader(title, anchor=False, text_alignment="center", width="content")
        st.markdown(why, text_alignment="center", width=560)
        if command:
            st.code(command, language="bash", width=560, wrap_lines=True)


def nothing_to_compare(status: dict[str, Any]) -> bool:
    """Whether images or vectors are missing (`status` is `lakeloop status`); what is missing is then on the page."""
    if not status["images"]:
        no_images()
    elif not any(one["embedded"] for one in status["embedders"]):
        not_embedded()
    else:
        return False
    return True


def no_images() -> None:
    """Nothing was ingested."""
    command = for_this_lake("ingest", "FOLDER")
    empty(
        "This lake has no images yet",
        "Point it at a folder of images or a table of predictions, or have a service send its answers to this address.",
        command,
    )


def not_embedded() -> None:
    """There are images, and no vector to compare them by."""
    why = "Images are found by their embeddings. One command computes what is missing."
    empty("Nothing is embedded yet", why, for_this_lake("embed"))


def nothing_passes() -> None:
    """The scope and its filters leave no row."""
    with st.container(horizontal_alignment="center"):
        st.space("medium")
        st.subheader("No image passes the filters", anchor=False, width="content")
        st.caption("Take one of the chips above away, or all of them.", width="content")
        if st.button("Clear filters"):
            session.put(**dict.fromkeys(session.SHARED))
            st.rerun()
