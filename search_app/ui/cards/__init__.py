"""Cluster cards: six typical images of each cluster, with what is known about it in numbers.

Thumbnails come by URL; back comes the path of the card that was clicked. It knows no SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import streamlit as st

from search_app.ui.groups import ENOUGH
from search_app.ui.rates import count, images, share, wilson

_here = files("search_app.ui.cards")
_component = st.components.v2.component(
    "lakeloop_cards",
    html='<div class="cards"></div>',
    css=(_here / "cards.css").read_text("utf-8"),
    js=(_here / "cards.js").read_text("utf-8"),
)


def cluster_cards(
    nodes: Sequence[dict[str, Any]],
    kinds: Mapping[str, Sequence[tuple[str, str, float]]],
    usual: float | None,
    key: str = "cards",
) -> str | None:
    """Show one card for each row of `queries.children`; returns the path of the node clicked, or None.

    `kinds` is what nodes are made of (`groups.make_up`); a card whose error rate is surely above `usual`, the
    rate of all of them, stands out.
    """
    palette = sorted({one["label"] for row in nodes for one in row["labels"] or [] if one["label"] is not None})
    result = _component(
        key=key,
        data={"cards": [_card(row, kinds.get(row["id"], ()), usual) for row in nodes], "palette": palette},
        on_open_change=lambda: None,
    )
    return str(result.open) if result.open else None


def _card(row: dict[str, Any], kinds: Sequence[tuple[str, str, float]], usual: float | None) -> dict[str, Any]:
    known = row["known"] or 0
    wrong = wilson(known - (row["right"] or 0), known)
    return {
        "node": row["node"],
        "size": images(row["size"]),
        "noise": bool(row["noise"]),
        "thumbs": list(row["medoids"] or [])[:6],
        "wrong": f"{share(wrong.value)} wrong" if known else "",
        "interval": f"{count(wrong.n - (row['right'] or 0))} of {count(known)}, 95 % {wrong.span()}"
        if known
        else "no labels",
        "alarm": bool(known >= ENOUGH and usual is not None and (wrong.low or 0) > usual),
        "confidence": "" if row["confidence"] is None else f"mean confidence {row['confidence']:.2f}",
        "kinds": [f"{share(part)} {name} {value}" for name, value, part in kinds],
        "labels": [{"label": one["label"] or "no label", "n": one["n"]} for one in (row["labels"] or [])],
    }
