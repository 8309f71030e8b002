"""The view Card of a run: its model card."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui.components import empty_states
from search_app.ui.data import model_record
from search_app.ui.text.markdown import escape

if TYPE_CHECKING:
    from training.registry.runs import Run

_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


def show(run: Run) -> None:
    """The view."""
    if run.status != "done":
        return empty_states.empty("No card yet", "The card appears when the run is done.")
    try:
        with st.spinner("Rendering the card …", show_time=True):
            card = model_record.card(run.id)
    except LakeloopError as error:
        return empty_states.empty("No card", escape(str(error)))
    head, text = _parts(card.text)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("The card has only what was recorded and measured.", width="content")
        st.space("stretch")
        st.download_button("Download", card.text, f"{run.model}-{run.id}.md", "text/markdown", on_click="ignore")
    with st.container(width=860):
        end = 0
        for match in _IMAGE.finditer(text):
            st.markdown(text[end : match.start()])
            end = match.end()
            name = match[1].rpartition("/")[2]
            if name in card.plots:
                st.image(card.plots[name])
        st.markdown(text[end:])
        with st.expander("Metadata, for the Hugging Face Hub"):
            st.code(head, language="yaml")
    return None


def _parts(text: str) -> tuple[str, str]:
    """The YAML header without its fences, and the rest."""
    if text.startswith("---\n") and (end := text.find("\n---\n", 4)) > 0:
        return text[4:end], text[end + 5 :]
    return "", text
