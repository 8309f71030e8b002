"""Escapes user text so that Markdown shows it letter by letter."""

from __future__ import annotations

import re


def escape(text: str) -> str:
    """User text (labels, file names, messages) on one line, with Markdown's characters escaped."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~:$<>&])", r"\\\1", text.replace("\n", " "))
