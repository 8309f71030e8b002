"""Cluster cards: typical and borderline images, most confident errors, and numbers of each cluster.

The browser fetches thumbnails by URL. It reports which card was opened, accepted or refused. It knows no SQL.
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
class CardAction:
    """What the user did with a card: `name` is open, montage, accept or refuse; `node` the path of its node."""

    name: str
    node: str


def cluster_cards(
    nodes: Sequence[dict[str, Any]],
    kinds: Mapping[str, Sequence[tuple[str, str, float]]],
    overall: float | None,
    searching: bool = False,
    key: str = "cards",
) -> CardAction | None:
    """Shows one card for each row of `queries.children`; returns what the user did, or None.

    `kinds`: see `groups.make_up`. A card is highlighted if the 95 % interval of its error rate lies above `overall`,
    the error rate of all of them. With `searching`, a whole cluster can be accepted or refused.
    """
    palette = sorted({part["label"] for row in nodes for part in row["labels"] or [] if part["label"] is not None})
    result = _component(
        key=key,
        data={
            "cards": [_card(row, kinds.get(row["id"], ()), overall) for row in nodes],
            "palette": palette,
            "searching": searching,
        },
        on_act_change=lambda: None,
    )
    return CardAction(str(result.act["name"]), str(result.act["node"])) if result.act else None


def name_of(row: Mapping[str, Any]) -> str:
    """The name of a node: the one a person gave it, else its number."""
    if row["name"]:
        return str(row["name"])
    if not row["node"]:
        return "All"
    return f"Noise ({row['node']})" if row["noise"] else f"Cluster {row['node']}"


def _card(row: dict[str, Any], kinds: Sequence[tuple[str, str, float]], overall: float | None) -> dict[str, Any]:
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
        "alarm": bool(known >= ENOUGH and overall is not None and (wrong.low or 0) > overall),
        "kinds": [f"{share(part)} {name} {value}" for name, value, part in kinds],
        "labels": [{"label": part["label"] or "no label", "n": part["n"]} for part in (row["labels"] or [])],
        "quality": _quality(row),
    }


def _quality(row: Mapping[str, Any]) -> str:
    facts = [] if row["confidence"] is None else [f"mean confidence {row['confidence']:.2f}"]
    facts += [] if row["compactness"] is None else [f"compactness {row['compactness']:.2f}"]
    facts += [] if row["persistence"] is None else [f"persistence {row['persistence']:.2f}"]
    facts += [] if row["noise_share"] is None else [f"split, {share(row['noise_share'])} noise"]
    return ", ".join(facts)
