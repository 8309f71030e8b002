"""Escapes user text so that Markdown shows it letter by letter."""

from __future__ import annotations

import re

# An invisible sign that keeps addresses apart: Streamlit's Markdown makes links of them, also where they are escaped.
# Never in NAME@VERSION, which people copy: the part after the @ of an address has a dot inside.
_ADDRESS = re.compile(r"(?<=http)(?=://)|(?<=https)(?=://)|(?<=www)(?=\.)|(?=@[\w-]+\.[\w-])", re.IGNORECASE)
_JOINER = "\u2060"


def escape(text: str) -> str:
    """User text (labels, file names, messages) on one line, with Markdown's characters escaped and without links."""
    apart = _ADDRESS.sub(_JOINER, text.replace("\n", " "))
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~:$<>&])", r"\\\1", apart)
