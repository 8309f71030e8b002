"""Cluster cards: typical images of each cluster, its edge and its surest errors, and what is known of it in numbers.

Thumbnails come by URL; back comes which card was opened, or accepted or refused whole. It knows no SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import streamlit as st

from lake.analytics.statistics import wilson
from search_app.ui.data.groups import ENOUGH
from search_app.ui.text.numbers import count, images, share, span

_here = files("search_app.ui.components.cards")
_component = st.components.v2.component(
    "lakeloop_cards",
    html='<p class="keys muted"></p><div class="cards"></div>',
    css=(_here / "cards.css").read_text("utf-8"),
    js=(_here / "cards.js").read_text("utf-8"),
)


@dataclass(frozen=True)
class Act:
    """What was done with the node of this path: `open`, `montage`, `accept` or `refuse`."""

    name: str
    node: str


def cluster_cards(
    nodes: Sequence[dict[str, Any]],
    kinds: Mapping[str, Sequence[tuple[str, str, float]]],
    usual: float | None,
    searching: bool = False,
    key: str = "cards",
) -> Act | None:
    """Show one card for each row of `queries.children`; returns what was done, or None.

    `kinds` is what nodes are made of (`groups.make_up`); a card whose error rate is surely above `usual`, the
    rate of all of them, stands out. With `searching` a cluster can be accepted or refused whole.
    """
    palette = sorted({one["label"] for row in nodes for one in row["labels"] or [] if one["label"] is not None})
    result = _component(
        key=key,
        data={
            "cards": [_card(row, kinds.get(row["id"], ()), usual) for row in nodes],
            "palette": palette,
            "searching": searching,
        },
        on_act_change=lambda: None,
    )
    return Act(str(result.act["name"]), str(result.act["node"])) if result.act else None


def name_of(row: Mapping[str, Any]) -> str:
    """What a node is called: a person's name for it, else what it is."""
    if row["name"]:
        return str(row["name"])
    if not row["node"]:
        return "All"
    return f"Scattered ({row['node']})" if row["noise"] else f"Cluster {row['node']}"


def _card(row: dict[str, Any], kinds: Sequence[tuple[str, str, float]], usual: float | None) -> dict[str, Any]:
    known = row["known"] or 0
    wrong = wilson(known - (row["right"] or 0), known)
    suggested = bool(row["suggested"] and not row["name"] and not row["noise"])
    return {
        "node": row["node"],
        "name": f"{row['suggested']} ({row['node']})" if suggested else name_of(row),
        "suggested": suggested,
        "size": images(row["size"]),
        "noise": bool(row["noise"]),
        "thumbs": list(row["medoids"] or [])[:6],
        "borderline": list(row["borderline"] or [])[:3],
        "errors": list(row["errors"] or [])[:3],
        "wrong": f"{share(wrong.value)} wrong" if known else "",
        "interval": f"{count(wrong.n - (row['right'] or 0))} of {count(known)}, 95 % {span(wrong)}"
        if known
        else "no labels",
        "alarm": bool(known >= ENOUGH and usual is not None and (wrong.low or 0) > usual),
        "kinds": [f"{share(part)} {name} {value}" for name, value, part in kinds],
        "labels": [{"label": one["label"] or "no label", "n": one["n"]} for one in (row["labels"] or [])],
        "quality": _quality(row),
    }


def _quality(row: Mapping[str, Any]) -> str:
    said = [] if row["confidence"] is None else [f"mean confidence {row['confidence']:.2f}"]
    said += [] if row["compactness"] is None else [f"compactness {row['compactness']:.2f}"]
    said += [] if row["persistence"] is None else [f"persistence {row['persistence']:.2f}"]
    said += [] if row["noise_share"] is None else [f"split, {share(row['noise_share'])} scattered"]
    return ", ".join(said)
