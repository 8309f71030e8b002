"""The report: numbers, sentences, tables and charts of a page, drawn by the browser from one small JSON.

One component instead of thirty Streamlit elements, and no chart library: the first page paints in half the time.
Blocks are made here; report.js and drawings.js draw them. A click on a link comes back and opens its page.
It knows no SQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Literal

import streamlit as st

from search_app.ui import session

Block = dict[str, Any]
Link = dict[str, Any]
Align = Literal["left", "right"]

_here = files("search_app.ui.components.report")
_component = st.components.v2.component(
    "lakeloop_report",
    html='<div class="report"></div>',
    css=(_here / "report.css").read_text("utf-8"),
    js="\n".join(
        (_here / name).read_text("utf-8") for name in ("drawings.js", "live.js", "report.js", "tables.js", "trained.js")
    ),
)


def report(rows: Sequence[Sequence[Block | None]], live: Block | None = None, key: str = "report") -> None:
    """Show blocks, row by row, side by side within one; None is left out. Above them `live`, see `arriving`."""
    kept = [[block for block in row if block] for row in rows]
    data = {"rows": [row for row in kept if row], "live": live}
    # A run of the page is all that bringing it up to date takes.
    result = _component(key=key, data=data, on_go_change=_nothing, on_refresh_change=_nothing)
    if result.go:
        session.go(str(result.go["page"]), **result.go["params"])


def link(text: str, page: str, **params: str | int | None) -> Link:
    """Another page with the present scope and `params` as its state."""
    changes = {name: str(value) for name, value in params.items() if value is not None}
    return {"text": text, "page": page, "params": changes, "href": session.href(page, **changes)}


def arriving(version: str) -> Block:
    """The strip of what arrives, kept fresh by the browser itself and hidden while nothing does.

    `version` is what this page shows, as `/v1/arrivals` says it: when the lake is ahead, the strip offers to catch up.
    """
    return {"version": version, "newest": link("", "search", show="newest")}


def numbers(title: str, *items: tuple[str, str, str, str], note: str = "") -> Block:
    """The headline: (name, value, small print, what it means) side by side."""
    names = ("name", "value", "small", "help")
    return {
        "kind": "numbers",
        "title": title,
        "note": note,
        "items": [dict(zip(names, one, strict=True)) for one in items],
    }


def card(title: Link, lead: str, small: str, lines: Sequence[str], image_ids: Sequence[str]) -> Block:
    """One group in words, with a few thumbnails. All of it is the link."""
    return {"link": title, "lead": lead, "small": small, "lines": list(lines), "images": list(image_ids)}


def cards(title: str, note: str, found: Sequence[Block], empty: str, links: Sequence[Link] = ()) -> Block:
    """A list of cards, or the sentence that stands for none."""
    return {"kind": "cards", "title": title, "note": note, "cards": list(found), "empty": empty, "links": list(links)}


def table(title: str, columns: Sequence[tuple[str, Align, str]], rows: Sequence[Sequence[Any]]) -> Block:
    """`columns` are (name, alignment, what it means); a cell is text, a Link, or an `alarm`."""
    heads = [{"name": name, "align": align, "help": help} for name, align, help in columns]
    return {"kind": "table", "title": title, "columns": heads, "rows": [list(row) for row in rows], "note": ""}


def alarm(text: str) -> dict[str, Any]:
    """A cell of a table that should be seen first."""
    return {"text": text, "alarm": True}


def voices(title: str, note: str, said: Sequence[Block], links: Sequence[Link]) -> Block:
    """What people say of answers, each a `voice`."""
    return {"kind": "voices", "title": title, "note": note, "voices": list(said), "links": list(links)}


def voice(
    to: Link, alike: Link, verdict: str, facts: Sequence[str], image_id: str, comment: str, said_at: str
) -> Block:
    """One of them: `to` is the answer and leads to its image, `alike` leads to images like it.

    `said_at` is ISO 8601; the browser says how long ago that was, after the `facts`.
    """
    said = {"verdict": verdict, "facts": list(facts), "comment": comment, "said_at": said_at}
    return {"link": to, "alike": alike, "image": image_id, **said}


def stack(*blocks: Block | None, wide: int = 1) -> Block:
    """Blocks one below the other in one column of a row."""
    return {"kind": "stack", "title": "", "blocks": [one for one in blocks if one], "wide": wide}


def bars(title: str, items: Sequence[tuple[str, str, Sequence[int]]]) -> Block:
    """Stacked bars: (tick, name, (right, wrong, not labelled)) from left to right."""
    return {"kind": "bars", "title": title, "bars": [{"tick": t, "name": n, "parts": list(p)} for t, n, p in items]}


def line(
    title: str, points: Sequence[tuple[str, float, float, float, int]], legend: str = "with its 95 % interval"
) -> Block:
    """A share over time with its interval: (tick, value, low, high, n), each share in [0, 1]."""
    names = ("tick", "value", "low", "high", "n")
    made = [dict(zip(names, one, strict=True)) for one in points]
    return {"kind": "line", "title": title, "points": made, "legend": legend}


def progress(title: str, items: Sequence[tuple[str, float, str]], note: str = "") -> Block:
    """Bars of what is done: (text, share in [0, 1], the command that does the rest or "")."""
    found = [{"text": text, "share": share, "command": command} for text, share, command in items]
    return {"kind": "progress", "title": title, "items": found, "note": note}


def links(title: str, items: Sequence[tuple[Link, str]]) -> Block:
    """What to do next: a link and why, one below the other."""
    return {"kind": "links", "title": title, "items": [{"link": one, "why": why} for one, why in items]}


def _nothing() -> None:
    """Streamlit offers a trigger only when a callback is named for it."""
