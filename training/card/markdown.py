"""Writes user text into Markdown so that it is shown literally, and formats numbers and tables.

Names, labels, reasons and SQL come from users and files. In text they are escaped; in code they are fenced with more
backticks than they contain. Invisible characters, and those that change the text direction, are shown as U+FFFD.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

LONGEST = 400
# Controls, invisible and reversing characters, lone surrogates, private ones, line and paragraph separators.
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_SPECIAL = re.compile(r"([\\`*_\[\]<#!|~&$])")
# GitHub's Markdown turns bare addresses and @names into links; NAME@3 is a version.
_ADDRESS = re.compile(r"(?i)(:)(?=//)|(?<=\bwww)(\.)|(@)(?!\d)")
# The start of a list, a quotation or the underline of a heading.
_BLOCK = re.compile(r"(?:[-+>=]|\d+(?=[.)]))")
# Numbers in cells: their columns are aligned right.
_NUMERIC = re.compile(r"[\d,.+-]+( to [\d,.+-]+)?\Z")


def plain(value: object, longest: int = LONGEST) -> str:
    """The value on one line of at most `longest` characters: white space collapsed, invisible characters as U+FFFD."""
    text = " ".join(str(value)[: longest * 4].split())
    text = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _INVISIBLE else c for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def text(value: object) -> str:
    """Escaped for a sentence, a list item or a table cell."""
    line = plain(value)
    start = match.end() if (match := _BLOCK.match(line)) else 0
    # A number keeps its digits: only the full stop or bracket after it starts a list.
    first = line[:start] + "\\" if line[:start].isdigit() else "\\" * bool(start) + line[:start]
    return first + _ADDRESS.sub(r"\\\g<0>", _SPECIAL.sub(r"\\\1", line[start:]))


def code(value: object) -> str:
    """As code in a line or a table cell; "-" for an empty value."""
    line = plain(value)
    if not line:
        return "-"
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}".replace("|", r"\|")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already. Columns of numbers are aligned right."""
    columns = [*zip(*rows, strict=True)]
    rule = ["--:" if all(_NUMERIC.match(cell) for cell in column) else "---" for column in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def block(value: Any) -> str:
    """Plain data as a JSON code block that its content cannot close."""
    content = json.dumps(value, indent=2, sort_keys=True)
    fence = "`" * max(3, _longest_run(content) + 1)
    return f"{fence}json\n{content}\n{fence}"


def number(value: float | None) -> str:
    """An integer in full, any other number to three decimals; "-" for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _longest_run(content: str) -> int:
    return max((len(run) for run in re.findall("`+", content)), default=0)
