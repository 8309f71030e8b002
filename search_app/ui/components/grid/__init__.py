"""The image grid: one component, used on every page that shows images.

Python sends ids, labels and numbers once; layout, selection, keys, the detail panel and the action bar live
in the browser (grid.js, detail.js, picture.js). Back come only ids: what is open and selected, for the URL,
and the actions every page offers alike. It knows no page; thumbnails come by URL.
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
# The address bar holds what a person may want to share, not ten thousand ids.
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
    """Show `rows` (image_id, label, confidence, and similarity when that is the measure) in their order.

    What is open or selected is kept in the URL as `open`, `sel` and `size`. Find similar goes to Search, Add
    to slice makes a slice, from any page.
    """
    data = _data(rows, measure, title or images(len(rows)))
    turn = _settle(key, data["token"])
    view = {**_view_of_url(data["ids"]), "turn": turn}
    result = _component(key=key, data={**data, "view": view}, on_view_change=_nothing, on_act_change=_nothing)
    if result.act:
        _act(result.act)


def _settle(key: str, token: str) -> int:
    """Bring browser and URL together; returns how often the URL changed by itself (back, forward, a link).

    News from the grid goes into the URL; a URL that changed otherwise tells the grid to follow it.
    """
    state = st.session_state
    said = (state.get(key) or {}).get("view")
    if said and said["token"] == token and said != state.get(f"{key}-said"):
        wanted = _to_url(said)
        # Noted before it is done: another event may end this run at any line.
        state[f"{key}-said"], state[f"{key}-url"] = said, wanted
        session.put(**wanted)
    elif state.get(f"{key}-url") != (now := {name: session.param(name) for name in ("open", "sel", "size")}):
        state[f"{key}-turn"], state[f"{key}-url"] = state.get(f"{key}-turn", 0) + 1, now
    return int(state.get(f"{key}-turn", 0))


def _data(rows: Sequence[dict[str, Any]], measure: Measure, title: str) -> dict[str, Any]:
    """The columns the browser needs; classes are numbered, since ten thousand rows share a few of them."""
    ids = [row["image_id"] for row in rows]
    faces = queries.faces(ids)
    known = [faces.get(one, {}) for one in ids]
    classes = sorted({str(one) for one in _each(rows, "label") + _each(known, "truth") if one is not None})
    number = {name: place for place, name in enumerate(classes)}
    return {
        "token": hashlib.sha1("".join(ids).encode() + measure.encode()).hexdigest()[:12],
        "ids": ids,
        "ratios": [round((face.get("width") or 1) / (face.get("height") or 1), 3) for face in known],
        "labels": classes,
        "label": [None if one is None else number[str(one)] for one in _each(rows, "label")],
        "truth": [None if one is None else number[str(one)] for one in _each(known, "truth")],
        "value": [None if one is None else round(one, 4) for one in _each(rows, measure)],
        "digits": 3 if measure == "similarity" else 2,
        "measure": measure,
        "title": title,
        "searchable": any(one["embedded"] for one in queries.status(queries.stamp())["embedders"]),
        "slices": sorted({row["name"] for row in queries.slices()}),
    }


def _each(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [row.get(name) for row in rows]


def selected(ids: Sequence[str]) -> list[str]:
    """Which of a grid's images are selected, as far as the URL holds them (up to SELECTED_IN_URL)."""
    full = {one[:_SHORT]: one for one in ids}
    return [full[one] for one in session.param("sel").split(".") if one in full]


def _view_of_url(ids: list[str]) -> dict[str, Any]:
    full = {one[:_SHORT]: one for one in ids}
    size = session.param("size", "m")
    return {
        "open": full.get(session.param("open")[:_SHORT]),
        "selected": selected(ids),
        "size": size if size in ("xs", "s", "m", "l") else "m",
    }


def _to_url(view: dict[str, Any]) -> dict[str, str]:
    picked = view["selected"] if len(view["selected"]) <= SELECTED_IN_URL else []
    return {
        "open": (view["open"] or "")[:_SHORT],
        "sel": ".".join(one[:_SHORT] for one in picked),
        "size": view["size"] if view["size"] != "m" else "",
    }


def _act(act: dict[str, Any]) -> None:
    match act["name"]:
        case "similar":
            # A link has to hold them, and a mean of more is no example any more.
            session.go("search", like=act["ids"][:SELECTED_IN_URL], by=session.param("by"), k=session.param("k"))
        case "isolate":
            active_searches.begin(examples=act["ids"], where=scope.current().where())
        case "slice":
            add_to_slice(act["slice"], act["ids"], act.get("role") or None)


def add_to_slice(name: str, ids: Sequence[str], role: str | None = None) -> None:
    """Make a slice of these images, or the next version of the slice of that name, with them and all it has."""
    newest = next((one for one in slices.newest(session.lake()) if one.name == name), None)
    if newest is None:
        save_slice(name, role=role, ids=ids)
    else:
        save_slice(name, role=role or newest.role, union=[newest.id, {"ids": list(ids)}])


def save_slice(name: str, *, role: str | None = None, **what: Any) -> None:
    """Make a slice from `ids`, `where`, `cluster` or whatever `lake.slices.create` takes, and say so.

    A refusal is said in the lake's words: of a training slice, when evaluation has its images or near-duplicates.
    """
    from embeddings.duplicates import leak_guard

    try:
        made, found = leak_guard.create(session.lake(), name, role=role, **what)
    except LakeloopError as error:
        st.toast(escape(str(error)), duration="long")
    else:
        session.wrote("slice create", made.id, {"kind": made.kind, "definition": made.definition})
        size, told = images(made.size), f" {escape(found.words())}." if found.words() else ""
        session.say(
            f"Slice {escape(made.name)} v{made.version} saved: {size}. Choose it under “Slice” above, or see it on the "
            f"page Slices.{told}"
        )
        st.rerun()  # the scope bar offers it from now on


def _nothing() -> None:
    """Streamlit offers a state or trigger only when a callback is named for it."""
