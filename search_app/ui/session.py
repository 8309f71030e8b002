"""What every page needs from outside: the open lake, the pages, the URL.

Streamlit runs scripts, not functions with arguments, so the server binds the lake here once. State that a
reload must bring back lives in the URL and is read and written only through this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import streamlit as st

from lake.access import audit, keys
from search_app.backend.query_images import QueryImages, beside

if TYPE_CHECKING:
    from lake.open_lake import OpenLake

# Parameters every page shares (the scope and its filters); the others belong to one page.
SHARED = ("slice", "node", "label", "model", "conf", "from", "to", "where")

_bound: dict[str, Any] = {}


def bind(lake: OpenLake) -> None:
    """Called by the server before the first page runs."""
    _bound["lake"] = lake


def lake() -> OpenLake:
    """The lake this server shows."""
    bound: OpenLake = _bound["lake"]
    return bound


def may(scope: str) -> bool:
    """Whether who looks may do what needs this scope of a key.

    A login by key can do what the key can; a server that is open, or that a person logged in to, lets do all.
    """
    key_id = st.context.headers.get("X-Lakeloop-Key")  # set by search_app/security/access.py, never by the browser
    if not key_id:
        return True
    record = keys.snapshot(lake()).get(key_id)
    return record is not None and record.allows(scope)


def wrote(action: str, target: str, detail: dict[str, Any]) -> None:
    """Says in the audit log what a page wrote, and who made it: a key, a user, or whoever runs an open server."""
    email = st.user.get("email")
    audit.record(
        lake(),
        action,
        target,
        key_id=st.context.headers.get("X-Lakeloop-Key"),  # set by search_app/security/access.py, never by the browser
        user=None if email is None else str(email),
        detail=detail,
    )


def query_images() -> QueryImages:
    """Where uploaded query images are."""
    return beside(lake().uri)


def params() -> dict[str, list[str]]:
    """The URL's parameters; every value is a list."""
    return {name: st.query_params.get_all(name) for name in st.query_params}


def param(name: str, default: str = "") -> str:
    """One parameter of the URL, its last value."""
    return str(st.query_params.get(name, default))


def put(**changes: str | int | Iterable[str] | None) -> None:
    """Change parameters of the URL; None or nothing removes one. Does not rerun."""
    for name, value in changes.items():
        values = _values(value)
        if not values:
            if name in st.query_params:
                del st.query_params[name]
        elif st.query_params.get_all(name) != values:
            st.query_params[name] = values
    save(st.session_state["_page"])


def switch(
    name: str, options: Mapping[str, str], shown: str, *, key: str, label: str = "View", clears: Iterable[str] = ()
) -> None:
    """Options side by side (value: its words), of which `shown` is chosen. Another one is written to the URL as `name`,
    and the parameters `clears`, `open` and `sel`, which belonged to what was shown, leave it.
    """
    # What the page shows is said by the URL alone: the control may still remember another choice.
    st.session_state[key] = shown

    def turn() -> None:
        gone: dict[str, None] = dict.fromkeys([*clears, "open", "sel"])
        put(**{name: st.session_state[key]}, **gone)

    st.segmented_control(
        label,
        list(options),
        format_func=lambda one: options[one],
        label_visibility="collapsed",
        required=True,
        key=key,
        on_change=turn,
    )


def remember(page: str) -> None:
    """Carry the scope from page to page, and give a page its own state back when the user returns to it.

    Streamlit empties the URL when another page is chosen; a URL that says anything at all is left alone.
    """
    state = st.session_state
    saved: dict[str, dict[str, list[str]]] = state.setdefault("_params", {})
    before = state.get("_page")
    if before not in (None, page) and not params():
        shared = {name: values for name, values in saved.get(before, {}).items() if name in SHARED}
        own = {name: values for name, values in saved.get(page, {}).items() if name not in SHARED}
        for name, values in {**own, **shared}.items():
            st.query_params[name] = values
    state["_page"] = page


def save(page: str) -> None:
    """What the URL says now is this page's state, to come back to."""
    st.session_state["_params"][page] = params()


def go(page: str, **changes: str | int | Iterable[str] | None) -> None:
    """Show another page with the present scope and `changes` as its own state. Ends this run."""
    st.switch_page(st.session_state["_pages"][page], query_params=_target(changes))


def say(text: str) -> None:
    """Have the next run tell the user something, in markdown: what this run says is gone when it reruns."""
    st.session_state["_said"] = text


def said() -> str | None:
    """What the run before wanted told, once."""
    text = st.session_state.pop("_said", None)
    return None if text is None else str(text)


def href(page: str, **changes: str | int | Iterable[str] | None) -> str:
    """The address `go` would lead to, for a link that can be opened in a tab of its own."""
    query = urlencode(_target(changes), doseq=True)
    path = "" if page == "overview" else page
    return f"./{path}" + (f"?{query}" if query else "")


def _target(changes: dict[str, str | int | Iterable[str] | None]) -> dict[str, list[str]]:
    """The shared parameters with `changes`, those without a value left out."""
    target = {name: values for name, values in params().items() if name in SHARED}
    target |= {name: _values(value) for name, value in changes.items()}
    return {name: values for name, values in target.items() if values}


def _values(value: str | int | Iterable[str] | None) -> list[str]:
    """A parameter's values as the URL has them; nothing and empty text are no value."""
    values = [str(value)] if isinstance(value, str | int) else list(value or ())
    return [one for one in values if one]
