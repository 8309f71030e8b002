"""The marking grid of an active search: thumbnails that the user marks yes or no by click or key.

Marks stay in the browser (marking.js) until the page is sent. The browser returns the ids of one page. The detail panel
is that of the image grid. It knows no search. Thumbnails are fetched by URL.
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
    css="\n".join((folder / name).read_text("utf-8") for folder, name in ((_grid, "grid.css"), (_here, "marking.css"))),
    js="\n".join(
        (folder / name).read_text("utf-8")
        for folder, name in ((_grid, "picture.js"), (_grid, "detail.js"), (_here, "marking.js"))
    ),
)


@dataclass(frozen=True)
class Heading:
    """The heading of a page: `numbers` are (value, name, explanation), `advice` is one sentence.

    `like`: image_ids of the first examples. `stop`: the advice is to stop, and is highlighted.
    """

    like: Sequence[str]

    numbers: Sequence[tuple[str, str, str]]
    advice: str
    stop: bool


@dataclass(frozen=True)
class MarkingAction:
    """What the user did: `name` is mark (`yes`: the ids marked yes), undo or slice (save what was found).

    `token` identifies the page on the screen, see `token_of`.
    """

    name: str
    token: str = ""
    yes: list[str] = field(default_factory=list)


def token_of(search: str, image_ids: Sequence[str]) -> str:
    """Identifies a page of a search: pages with different images have different tokens."""
    return hashlib.sha1(f"{search} {' '.join(image_ids)}".encode()).hexdigest()[:12]


def marking_grid(
    image_ids: Sequence[str], token: str, heading: Heading, turn: int, on_action: Callable[[MarkingAction], None],
    before: dict[str, str] | None = None, key: str = "marking",
) -> None:  # fmt: skip
    """Shows one page. `on_action` is called with what the user did, before the next run of the page.

    `turn` counts the actions that Python has handled, so that the browser knows when to continue. `before`: marks (yes,
    no) that the page starts with, by image_id.
    """

    def handle() -> None:
        act = (st.session_state.get(key) or {}).get("act")
        if act:
            on_action(MarkingAction(str(act["name"]), str(act.get("token", "")), list(act.get("yes", ()))))

    _component(
        key=key,
        data={
            "ids": list(image_ids),
            "token": token,
            "turn": turn,
            "like": list(heading.like),
            "numbers": [list(number) for number in heading.numbers],
            "advice": heading.advice,
            "stop": heading.stop,
            "before": before or {},
        },
        on_act_change=handle,
    )
