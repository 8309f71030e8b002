"""The marking grid of an active search: a page of thumbnails, each yes or no by click or key.

Marks stay in the browser (marking.js) until the page is sent; back come one page's ids. What an image is and how
it is looked at closer is shared with the image grid. It knows no search; thumbnails come by URL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import streamlit as st

_here = files("search_app.ui.components.marking")
_grid = files("search_app.ui.components.grid")
_component = st.components.v2.component(
    "lakeloop_marking",
    html='<div class="marking"></div>',
    css="\n".join((place / name).read_text("utf-8") for place, name in ((_grid, "grid.css"), (_here, "marking.css"))),
    js="\n".join(
        (place / name).read_text("utf-8")
        for place, name in ((_grid, "picture.js"), (_grid, "detail.js"), (_here, "marking.js"))
    ),
)


@dataclass(frozen=True)
class Heading:
    """What stands above the page: (value, what it counts, what that means) each, and one sentence of advice.

    `like`: image_ids of the first examples. `stop`: the advice is to stop, and is shown so that it is seen.
    """

    like: Sequence[str]

    numbers: Sequence[tuple[str, str, str]]
    advice: str
    stop: bool


@dataclass(frozen=True)
class Said:
    """What the person did: `mark` a page (`yes`: the ids that are), `undo` the last one, or save a `slice`.

    `token` names the page that was on the screen, see `token_of`.
    """

    name: str
    token: str = ""
    yes: list[str] = field(default_factory=list)


def token_of(search: str, image_ids: Sequence[str]) -> str:
    """A name for one page of one search: pages that differ in an image have different ones."""
    return hashlib.sha1(f"{search} {' '.join(image_ids)}".encode()).hexdigest()[:12]


def marking_grid(
    image_ids: Sequence[str], token: str, heading: Heading, turn: int, on_said: Callable[[Said], None],
    before: dict[str, str] | None = None, key: str = "marking",
) -> None:  # fmt: skip
    """Show one page. `on_said` hears what was done, before the page's next run.

    `turn` counts what Python has answered, so that the browser knows when it may go on. `before` are marks (yes, no)
    that the page begins with, by image_id.
    """

    def heard() -> None:
        act = (st.session_state.get(key) or {}).get("act")
        if act:
            on_said(Said(str(act["name"]), str(act.get("token", "")), list(act.get("yes", ()))))

    _component(
        key=key,
        data={
            "ids": list(image_ids),
            "token": token,
            "turn": turn,
            "like": list(heading.like),
            "numbers": [list(one) for one in heading.numbers],
            "advice": heading.advice,
            "stop": heading.stop,
            "before": before or {},
        },
        on_act_change=heard,
    )
