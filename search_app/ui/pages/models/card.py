"""The model card of a run, as it is rendered from the record."""

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
        return empty_states.empty("No card yet", "A card is rendered from what was measured, when the run is done.")
    try:
        with st.spinner("Rendering the card …", show_time=True):
            made = model_record.card(run.id)
    except LakeloopError as error:
        return empty_states.empty("No card", escape(str(error)))
    head, text = _parts(made.text)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption("Rendered from the record alone: what was not measured is not on it.", width="content")
        st.space("stretch")
        st.download_button("Download", made.text, f"{run.model}-{run.id}.md", "text/markdown", on_click="ignore")
    with st.container(width=860):
        last = 0
        for found in _IMAGE.finditer(text):
            st.markdown(text[last : found.start()])
            last = found.end()
            name = found[1].rpartition("/")[2]
            if name in made.plots:
                st.image(made.plots[name])
        st.markdown(text[last:])
        with st.expander("Metadata, for the Hugging Face Hub"):
            st.code(head, language="yaml")
    return None


def _parts(text: str) -> tuple[str, str]:
    """The YAML header without its fences, and the rest."""
    if text.startswith("---\n") and (end := text.find("\n---\n", 4)) > 0:
        return text[4:end], text[end + 5 :]
    return "", text
