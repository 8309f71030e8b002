"""The report: numbers, sentences, tables and charts of a page, drawn by the browser from JSON.

One component instead of thirty Streamlit elements, and no chart library: the first page appears in half the time.
Blocks are built here; report.js and drawings.js draw them. A click on a link opens its page. It knows no SQL.
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
    """Shows blocks row by row, side by side within a row; None is left out. Above them `live`, see `arriving`."""
    present = [[block for block in row if block] for row in rows]
    data = {"rows": [row for row in present if row], "live": live}
    # A refresh only needs this run of the page.
    result = _component(key=key, data=data, on_go_change=_nothing, on_refresh_change=_nothing)
    if result.go:
        session.go(str(result.go["page"]), **result.go["params"])


def link(text: str, page: str, **params: str | int | None) -> Link:
    """A link to another page with the current scope and `params` as its state."""
    changes = {name: str(value) for name, value in params.items() if value is not None}
    return {"text": text, "page": page, "params": changes, "href": session.href(page, **changes)}


def arriving(version: str) -> Block:
    """The strip of arriving predictions, kept up to date by the browser and hidden while none arrive.

    `version`: what this page shows, as in `/v1/arrivals`. If the lake is newer, the strip offers an update.
    """
    return {"version": version, "newest": link("", "search", show="newest")}


def numbers(title: str, *items: tuple[str, str, str, str], note: str = "") -> Block:
    """Headline numbers side by side: (name, value, small print, explanation)."""
    names = ("name", "value", "small", "help")
    return {
        "kind": "numbers",
        "title": title,
        "note": note,
        "items": [dict(zip(names, item, strict=True)) for item in items],
    }


def card(title: Link, lead: str, small: str, lines: Sequence[str], image_ids: Sequence[str]) -> Block:
    """A group as text with a few thumbnails. The whole card is the link."""
    return {"link": title, "lead": lead, "small": small, "lines": list(lines), "images": list(image_ids)}


def cards(title: str, note: str, items: Sequence[Block], empty: str, links: Sequence[Link] = ()) -> Block:
    """A list of cards, or the sentence `empty` if there are none."""
    return {"kind": "cards", "title": title, "note": note, "cards": list(items), "empty": empty, "links": list(links)}


def table(title: str, columns: Sequence[tuple[str, Align, str]], rows: Sequence[Sequence[Any]]) -> Block:
    """`columns`: (name, alignment, explanation); a cell is text, a Link, or an `alarm`."""
    heads = [{"name": name, "align": align, "help": help} for name, align, help in columns]
    return {"kind": "table", "title": title, "columns": heads, "rows": [list(row) for row in rows], "note": ""}


def alarm(text: str) -> dict[str, Any]:
    """A highlighted cell of a table."""
    return {"text": text, "alarm": True}


def voices(title: str, note: str, items: Sequence[Block], links: Sequence[Link]) -> Block:
    """Verdicts of people on predictions, each a `voice`."""
    return {"kind": "voices", "title": title, "note": note, "voices": list(items), "links": list(links)}


def voice(
    to: Link, similar: Link, verdict: str, facts: Sequence[str], image_id: str, comment: str, timestamp: str
) -> Block:
    """One verdict. `to` names the prediction and leads to its image; `similar` leads to similar images.

    `timestamp` is ISO 8601; the browser shows how long ago that was, after the `facts`.
    """
    review = {"verdict": verdict, "facts": list(facts), "comment": comment, "timestamp": timestamp}
    return {"link": to, "similar": similar, "image": image_id, **review}


def stack(*blocks: Block | None, wide: int = 1) -> Block:
    """Blocks one below the other in one column of a row."""
    return {"kind": "stack", "title": "", "blocks": [block for block in blocks if block], "wide": wide}


def bars(title: str, items: Sequence[tuple[str, str, Sequence[int]]]) -> Block:
    """Stacked bars: (tick, name, (right, wrong, not labelled)) from left to right."""
    return {"kind": "bars", "title": title, "bars": [{"tick": t, "name": n, "parts": list(p)} for t, n, p in items]}


def line(
    title: str, points: Sequence[tuple[str, float, float, float, int]], legend: str = "with its 95 % interval"
) -> Block:
    """A share over time with its interval: (tick, value, low, high, n), each share in [0, 1]."""
    names = ("tick", "value", "low", "high", "n")
    values = [dict(zip(names, point, strict=True)) for point in points]
    return {"kind": "line", "title": title, "points": values, "legend": legend}


def progress(title: str, items: Sequence[tuple[str, float, str]], note: str = "") -> Block:
    """Progress bars: (text, share in [0, 1], the command that completes it or "")."""
    rows = [{"text": text, "share": share, "command": command} for text, share, command in items]
    return {"kind": "progress", "title": title, "items": rows, "note": note}


def links(title: str, items: Sequence[tuple[Link, str]]) -> Block:
    """Links with a reason each, one below the other."""
    return {"kind": "links", "title": title, "items": [{"link": to, "why": why} for to, why in items]}


def _nothing() -> None:
    """Streamlit offers a trigger only when a callback is named for it."""
