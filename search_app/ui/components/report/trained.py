"""Blocks of a report for trained models: a verdict, slices before and after, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search_app.ui.components.report import Block, Link


def verdict(outcome: str, sign: str, headline: str, note: str, blocks: bool) -> Block:
    """The verdict of a gate as a banner. `outcome`: passed, failed or undecided; `blocks`: it forbids the promotion."""
    text = {"sign": sign, "headline": headline, "note": note}
    return {"kind": "verdict", "title": "", "outcome": outcome, "blocks": blocks, **text}


def changes(title: str, names: tuple[str, str], rows: Sequence[Block], note: str = "") -> Block:
    """Slices before and after, each a `change`, on one axis. `names`: of the old and the new model."""
    ends = [end for row in rows for side in (row["old"], row["new"]) for end in side if end is not None]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = max(0.05, high - low) * 0.06
    axis = [max(0.0, low - room) if low >= 0 else low - room, min(1.0, high + room) if high <= 1 else high + room]
    return {"kind": "changes", "title": title, "names": list(names), "axis": axis, "rows": list(rows), "note": note}


def change(
    to: Link,
    small: str,
    outcome: tuple[str, str] | None,
    n: str,
    old: tuple[float | None, float | None, float | None],
    new: tuple[float | None, float | None, float | None],
    moved: tuple[str, str, bool],
    turned: tuple[Link | str, Link | str],
    sentence: str = "",
    blocks: bool = False,
    chosen: bool = False,
) -> Block:
    """One slice. `outcome`: (passed, failed or undecided, its sign); `old`, `new`: value, low and high end; `moved`:
    the change and its interval as text, and whether it is a fall; `turned`: newly wrong and newly right.
    """
    return {
        "link": to, "small": small, "outcome": None if outcome is None else list(outcome), "n": n, "old": list(old),
        "new": list(new), "moved": list(moved), "turned": list(turned), "sentence": sentence, "blocks": blocks,
        "chosen": chosen,
    }  # fmt: skip


def curves(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], every: Sequence[str] = (), across: str = "epoch"
) -> Block:
    """Lines over epochs: for each name the points (x, y), x ascending. `every`: the names in all charts of a page, so
    that each name has the same line style in all of them.
    """
    order = [*every, *(name for name in series if name not in every)]
    lines: list[dict[str, Any]] = [
        {"name": name, "points": [list(point) for point in points], "line": order.index(name)}
        for name, points in series.items()
    ]
    return {"kind": "curves", "title": title, "across": across, "series": lines}
