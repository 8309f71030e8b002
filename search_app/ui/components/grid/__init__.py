"""The image grid of every page, and its actions: search, isolate, save a slice.

Python sends ids, labels and numbers once. Layout, selection, keys, the detail panel and the action bar are in the
browser (grid.js, detail.js, picture.js). The browser returns only ids: the open and selected images, for the URL, and
the actions. Thumbnails are fetched by URL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Literal

import streamlit as st

from lake import slices
from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.components import scope
from search_app.ui.data import active_searches, queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import images

Measure = Literal["similarity", "confidence"]
# The URL holds a selection that a person may share, not ten thousand ids.
SELECTED_IN_URL = 60
_SHORT = 16  # hex digits of an id in the URL: enough to tell the images of one page apart

_here = files("search_app.ui.components.grid")
_component = st.components.v2.component(
    "lakeloop_grid",
    html='<div class="grid"></div>',
    css=(_here / "grid.css").read_text("utf-8"),
    js="\n".join((_here / name).read_text("utf-8") for name in ("picture.js", "detail.js", "grid.js")),
)


def image_grid(rows: Sequence[dict[str, Any]], measure: Measure, title: str = "", key: str = "grid") -> None:
    """Shows `rows` (image_id, label, confidence, and similarity if that is the measure) in their order.

    The URL holds the open and selected images and the size as `open`, `sel` and `size`.
    """
    data = _data(rows, measure, title or images(len(rows)))
    turn = _settle(key, data["token"])
    view = {**_view_of_url(data["ids"]), "turn": turn}
    result = _component(key=key, data={**data, "view": view}, on_view_change=_nothing, on_act_change=_nothing)
    if result.act:
        _act(result.act)


def _settle(key: str, token: str) -> int:
    """Synchronises grid and URL; returns how often the URL changed by itself (back, forward, a link).

    A change in the grid is written to the URL. Any other change of the URL makes the grid follow it.
    """
    state = st.session_state
    view = (state.get(key) or {}).get("view")
    if view and view["token"] == token and view != state.get(f"{key}-view"):
        params = _to_url(view)
        # Recorded first: another event may end this run at any line.
        state[f"{key}-view"], state[f"{key}-url"] = view, params
        session.put(**params)
    elif state.get(f"{key}-url") != (now := {name: session.param(name) for name in ("open", "sel", "size")}):
        state[f"{key}-turn"], state[f"{key}-url"] = state.get(f"{key}-turn", 0) + 1, now
    return int(state.get(f"{key}-turn", 0))


def _data(rows: Sequence[dict[str, Any]], measure: Measure, title: str) -> dict[str, Any]:
    """The columns for the browser. Classes are sent as numbers: ten thousand rows share a few of them."""
    ids = [row["image_id"] for row in rows]
    facts_by_id = queries.image_facts(ids)
    facts = [facts_by_id.get(id, {}) for id in ids]
    classes = sorted({str(name) for name in _each(rows, "label") + _each(facts, "truth") if name is not None})
    number = {name: i for i, name in enumerate(classes)}
    return {
        "token": hashlib.sha1("".join(ids).encode() + measure.encode()).hexdigest()[:12],
        "ids": ids,
        "ratios": [round((fact.get("width") or 1) / (fact.get("height") or 1), 3) for fact in facts],
        "labels": classes,
        "label": [None if name is None else number[str(name)] for name in _each(rows, "label")],
        "truth": [None if name is None else number[str(name)] for name in _each(facts, "truth")],
        "value": [None if value is None else round(value, 4) for value in _each(rows, measure)],
        "digits": 3 if measure == "similarity" else 2,
        "measure": measure,
        "title": title,
        "searchable": any(embedder["embedded"] for embedder in queries.status(queries.stamp())["embedders"]),
        "slices": sorted({row["name"] for row in queries.slices()}),
    }


def _each(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def selected(ids: Sequence[str]) -> list[str]:
    """The selected images of a grid, if they are at most SELECTED_IN_URL; else none."""
    full = {id[:_SHORT]: id for id in ids}
    return [full[short] for short in session.param("sel").split(".") if short in full]


def _view_of_url(ids: list[str]) -> dict[str, Any]:
    full = {id[:_SHORT]: id for id in ids}
    size = session.param("size", "m")
    return {
        "open": full.get(session.param("open")[:_SHORT]),
        "selected": selected(ids),
        "size": size if size in ("xs", "s", "m", "l") else "m",
    }


def _to_url(view: dict[str, Any]) -> dict[str, str]:
    selected = view["selected"] if len(view["selected"]) <= SELECTED_IN_URL else []
    return {
        "open": (view["open"] or "")[:_SHORT],
        "sel": ".".join(id[:_SHORT] for id in selected),
        "size": view["size"] if view["size"] != "m" else "",
    }


def _act(act: dict[str, Any]) -> None:
    match act["name"]:
        case "similar":
            # The URL must hold the ids, and a mean of more images is no longer a useful example.
            session.go("search", like=act["ids"][:SELECTED_IN_URL], by=session.param("by"), k=session.param("k"))
        case "isolate":
            active_searches.begin(examples=act["ids"], where=scope.where())
        case "slice":
            add_to_slice(act["slice"], act["ids"], act.get("role") or None)


def add_to_slice(name: str, ids: Sequence[str], role: str | None = None) -> None:
    """Saves a new slice of these images, or the next version of the slice `name` with these images added."""
    newest = next((slice_ for slice_ in slices.newest(session.lake()) if slice_.name == name), None)
    if newest is None:
        save_slice(name, role=role, ids=ids)
    else:
        save_slice(name, role=role or newest.role, union=[newest.id, {"ids": list(ids)}])


@session.handler("slice create")
def save_slice(name: str, *, role: str | None = None, **definition: Any) -> None:
    """Saves a slice from `ids`, `where`, `cluster` or another definition of `lake.slices.create`, and reports it.

    If the lake refuses, its message is shown: a training slice must share no image with an evaluation slice.
    """
    from embeddings.duplicates import leak_guard

    try:
        saved, leaking = leak_guard.create(session.lake(), name, role=role, **definition)
    except LakeloopError as error:
        st.toast(escape(str(error)), duration="long")
    else:
        session.wrote(saved.id, {"kind": saved.kind, "definition": saved.definition})
        size, warning = images(saved.size), f" {escape(leaking.words())}." if leaking.words() else ""
        session.say(
            f"Slice {escape(saved.name)} v{saved.version} saved: {size}. Select it under “Slice” above, or open it on "
            f"the page Slices.{warning}"
        )
        st.rerun()  # the scope bar lists it from now on


def _nothing() -> None:
    """Streamlit offers a state or trigger only when a callback is named for it."""
