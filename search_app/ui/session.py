"""A page's session: the open lake, the user's scopes, URL parameters, links between pages, messages.

Streamlit runs scripts, not functions with arguments, so the server binds the lake here once. State that must survive a
reload is in the URL; only this module reads and writes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ParamSpec
from urllib.parse import unquote, urlencode

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from lake.access import audit, keys
from lake.jobs.job import Starter
from search_app.backend.query_images import QueryImages, beside
from search_app.security import page_actions

if TYPE_CHECKING:
    from lake.open_lake import OpenLake

# Parameters that all pages share (scope and filters). The others belong to one page.
SHARED = ("slice", "node", "label", "model", "conf", "from", "to", "where")

P = ParamSpec("P")

_bound: dict[str, Any] = {}
_acting: ContextVar[str | None] = ContextVar("acting", default=None)


def bind(lake: OpenLake) -> None:
    """Sets the lake, which pages from now on write only while they are `acting`. The server calls it first."""
    _bound["lake"] = lake
    lake.guard = _guard


def _guard() -> None:
    if _acting.get() is None and get_script_run_ctx(suppress_warning=True) is not None:
        raise AssertionError("a page writes, and nothing asked whether the user may")


def lake() -> OpenLake:
    """The lake that this server shows."""
    bound: OpenLake = _bound["lake"]
    return bound


def may(scope: str) -> bool:
    """Whether the user has this scope: that of the key or the user that logged in, every scope on an open server."""
    scopes = _scopes()
    return scope in scopes or "admin" in scopes


@contextmanager
def acting(action: str, of_kind: str = "admin") -> Iterator[None]:
    """Within it a page may write. Raises NotAllowed unless the user may do the action, see `page_actions.require`."""
    page_actions.require(action, _scopes(), of_kind)
    token = _acting.set(action)
    try:
        yield
    finally:
        _acting.reset(token)


def handler(action: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Marks a function of a page that does this action. It runs for users who may; others are told what they lack."""
    assert action in page_actions.ACTIONS, action

    def mark(do: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(do)
        def asked(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                page_actions.require(action, _scopes())
            except page_actions.NotAllowed as error:
                st.toast(str(error), duration="long")
                return
            with acting(action):
                do(*args, **kwargs)

        return asked

    return mark


def _scopes() -> frozenset[str]:
    # The headers are set by search_app/security/access.py, never by the browser. Without them nothing is allowed.
    headers = st.context.headers
    if key_id := headers.get("X-Lakeloop-Key"):
        record = keys.snapshot(lake()).get(key_id)
        return frozenset() if record is None or record.state() != "active" else frozenset(record.scopes)
    return frozenset((headers.get("X-Lakeloop-Scopes") or "").split())


def starter() -> Starter:
    """Whoever uses the page: the user who logged in, or the key; neither on an open server."""
    headers = st.context.headers  # see _scopes
    return Starter(unquote(headers.get("X-Lakeloop-User") or "") or None, headers.get("X-Lakeloop-Key"))


def wrote(target: str, detail: dict[str, Any]) -> None:
    """Records the action in the audit log, and which key or user did it (neither on an open server)."""
    action, by = _acting.get(), starter()
    assert action is not None, "nothing asked whether the user may"
    audit.write(lake(), audit.entry(action, target, key_id=by.key_id, user=by.user, detail=detail))


def query_images() -> QueryImages:
    """The store of uploaded query images."""
    return beside(lake().uri)


def params() -> dict[str, list[str]]:
    """The URL's parameters; every value is a list."""
    return {name: st.query_params.get_all(name) for name in st.query_params}


def param(name: str, default: str = "") -> str:
    """One parameter of the URL, its last value."""
    return str(st.query_params.get(name, default))


def put(**changes: str | int | Iterable[str] | None) -> None:
    """Changes parameters of the URL; None or an empty value removes one. Does not rerun."""
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
    """Options side by side (value: text), with `shown` selected. A new choice is written to the URL as `name`, and the
    parameters `clears`, `open` and `sel`, which belonged to the old choice, are removed.
    """
    # The URL decides what is shown: the control may still have an older choice.
    st.session_state[key] = shown

    def change() -> None:
        removed: dict[str, None] = dict.fromkeys([*clears, "open", "sel"])
        put(**{name: st.session_state[key]}, **removed)

    st.segmented_control(
        label,
        list(options),
        format_func=lambda value: options[value],
        label_visibility="collapsed",
        required=True,
        key=key,
        on_change=change,
    )


def remember(page: str) -> None:
    """Carries the scope from page to page, and restores the state of a page when the user returns to it.

    Streamlit empties the URL when the user opens another page. A URL with any parameter is not changed.
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
    """Stores the URL as the state of this page, to restore it later."""
    st.session_state["_params"][page] = params()


def go(page: str, **changes: str | int | Iterable[str] | None) -> None:
    """Shows another page with the current scope and `changes` as its state. Ends this run."""
    st.switch_page(st.session_state["_pages"][page], query_params=_target(changes))


def say(text: str) -> None:
    """Shows a message (Markdown) in the next run: a message of this run would disappear on a rerun."""
    st.session_state["_message"] = text


def message() -> str | None:
    """The message of the previous run, once; None if there is none."""
    text = st.session_state.pop("_message", None)
    return None if text is None else str(text)


def href(page: str, **changes: str | int | Iterable[str] | None) -> str:
    """The URL that `go` leads to, for links that can be opened in a new tab."""
    query = urlencode(_target(changes), doseq=True)
    path = "" if page == "overview" else page
    return f"./{path}" + (f"?{query}" if query else "")


def _target(changes: dict[str, str | int | Iterable[str] | None]) -> dict[str, list[str]]:
    """The shared parameters with `changes`, without empty ones."""
    target = {name: values for name, values in params().items() if name in SHARED}
    target |= {name: _values(value) for name, value in changes.items()}
    return {name: values for name, values in target.items() if values}


def _values(value: str | int | Iterable[str] | None) -> list[str]:
    """The values of a parameter for the URL; None and empty texts are left out."""
    values = [str(value)] if isinstance(value, str | int) else list(value or ())
    return [value for value in values if value]
