"""Words of other people within Markdown: what they wrote is shown, and means nothing to the page.

Names, labels, reasons and SQL come from users and from files. In text they are escaped, in code they are fenced by
more backticks than they have; characters that cannot be seen, or that turn the text around, are shown as such.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

LONGEST = 400
# Controls, invisible and reversing characters, lone surrogates, private ones, line and paragraph separators.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_MEANT = re.compile(r"([\\`*_\[\]<#!|~&$])")
# GitHub's Markdown makes links of bare addresses and of names; NAME@3 is a version.
_ADDRESS = re.compile(r"(?i)(:)(?=//)|(?<=\bwww)(\.)|(@)(?!\d)")
# A list, a quotation or the underlining of a heading.
_BLOCK = re.compile(r"(?:[-+>=]|\d+(?=[.)]))")
# What numbers look like in a cell: these columns end together.
_NUMERIC = re.compile(r"[\d,.+-]+( to [\d,.+-]+)?\Z")


def plain(value: object, longest: int = LONGEST) -> str:
    """The value on one line: runs of white space as one space, what cannot be seen as U+FFFD, at most `longest`."""
    text = " ".join(str(value)[: longest * 4].split())
    text = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _UNSEEN else c for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def text(value: object) -> str:
    """As words of a sentence, a list's item or a table's cell."""
    said = plain(value)
    start = found.end() if (found := _BLOCK.match(said)) else 0
    # A number keeps its digits: its full stop or bracket is what makes a list of it.
    first = said[:start] + "\\" if said[:start].isdigit() else "\\" * bool(start) + said[:start]
    return first + _ADDRESS.sub(r"\\\g<0>", _MEANT.sub(r"\\\1", said[start:]))


def code(value: object) -> str:
    """As code within a line or a table's cell; "-" for nothing."""
    said = plain(value)
    if not said:
        return "-"
    fence = "`" * (_longest_run(said) + 1)
    room = " " if said.startswith("`") or said.endswith("`") else ""
    return f"{fence}{room}{said}{room}{fence}".replace("|", r"\|")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; columns of numbers to the right."""
    columns = [*zip(*rows, strict=True)]
    rule = ["--:" if all(_NUMERIC.match(cell) for cell in column) else "---" for column in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def block(value: Any) -> str:
    """Plain data as JSON in a fence that nothing in it can close."""
    said = json.dumps(value, indent=2, sort_keys=True)
    fence = "`" * max(3, _longest_run(said) + 1)
    return f"{fence}json\n{said}\n{fence}"


def number(value: float | None) -> str:
    """A whole number in full, another one to three decimals; "-" for None."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _longest_run(said: str) -> int:
    return max((len(run) for run in re.findall("`+", said)), default=0)
