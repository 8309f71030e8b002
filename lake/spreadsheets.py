"""Text in CSV files: spreadsheets take it for a formula if it begins like one; an apostrophe in front prevents it."""

from __future__ import annotations

import re

# What spreadsheets take for a formula (OWASP, "CSV Injection"), behind apostrophes that are the text's own.
_FORMULA = re.compile("'*[=+\\-@\\t\\r\\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def cell(text: str) -> str:
    """The text as a cell of a CSV file. Numbers stay as they are."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def text(cell: str) -> str:
    """The text that `cell` made this cell of. Without an apostrophe before a formula, the cell is the text."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
