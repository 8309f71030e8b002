"""Report blocks of the page Analyse: findings with actions, heat tables, reliability curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from search_app.ui.components.report import Block, Link


def findings(title: str, note: str, items: Sequence[Block], empty: str) -> Block:
    """A list of `finding`s, or the sentence `empty` if there are none."""
    return {"kind": "findings", "title": title, "note": note, "findings": list(items), "empty": empty}


def finding(
    to: Link, lead: str, small: str, lines: Sequence[str], image_ids: Sequence[str], actions: Sequence[Link]
) -> Block:
    """One finding. `to`: where the finding leads; `actions`: links to what else can be done."""
    text = {"lead": lead, "small": small, "lines": list(lines)}
    return {"link": to, "actions": list(actions), "images": list(image_ids), **text}


def heat(
    title: str,
    corner: str,
    columns: Sequence[str],
    rows: Sequence[tuple[Link | str, Sequence[Block | None]]],
    note: str = "",
) -> Block:
    """A table with a name for each row, and a `cell` or None at each position."""
    lines = [{"name": name, "cells": list(cells)} for name, cells in rows]
    return {"kind": "heat", "title": title, "corner": corner, "columns": list(columns), "rows": lines, "note": note}


def cell(
    text: str,
    small: str = "",
    share: float | None = None,
    tone: str = "wrong",
    to: Link | None = None,
    help: str = "",
    chosen: bool = False,
) -> Block:
    """`share`, 0 to 1, is the strength of its tint in the colour of `tone` (right or wrong)."""
    return {"text": text, "small": small, "share": share, "tone": tone, "link": to, "help": help, "chosen": chosen}


def reliability(title: str, note: str, points: Sequence[tuple[float, float, float, float, int]]) -> Block:
    """Accuracy against confidence: (mean confidence, accuracy, its low and high end, n), shares in [0, 1]."""
    names = ("confidence", "value", "low", "high", "n")
    values: list[dict[str, Any]] = [dict(zip(names, point, strict=True)) for point in points]
    return {"kind": "reliability", "title": title, "note": note, "points": values}
