"""What a page writes, it may write: every handler asks the table of actions before it does."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lake import slices
from lake.jobs import current, record
from lake.jobs.job import Starter
from lake.open_lake import OpenLake
from search_app.security.page_actions import ACTIONS, NotAllowed, require
from tests.lake import stock

pytest.importorskip("streamlit")
UI = Path(__file__).parents[3] / "search_app" / "ui"
IDENTITIES = {
    "nobody": frozenset[str](),
    "read": frozenset({"read"}),
    "ingest": frozenset({"ingest"}),
    "edit": frozenset({"read", "edit"}),
    "sql": frozenset({"read", "sql"}),
    "admin": frozenset({"admin"}),
}


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_needs_its_scope_or_admin(action: str, identity: str) -> None:
    if ACTIONS[action] == identity or identity == "admin":
        require(action, IDENTITIES[identity])
    else:
        with pytest.raises(NotAllowed, match=f"needs the scope {ACTIONS[action]}"):
            require(action, IDENTITIES[identity])


def calls(function: ast.AST, name: str) -> list[tuple[int, str]]:
    """(line, action as written) of the calls session.NAME(action, ...)."""
    return [
        (node.lineno, ast.unparse(node.args[0]))
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"session.{name}"
    ]


def test_every_handler_asks_for_what_it_writes_and_the_table_has_no_other() -> None:
    written: set[str] = set()
    for path in UI.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            required = calls(function, "require")
            written |= {action for _, action in required}
            for line, action in calls(function, "wrote"):
                assert any(earlier < line and text == action for earlier, text in required), f"{path}:{line} {action}"
    literal = {ast.literal_eval(text) for text in written if text.startswith("'")}
    computed = {"search accept", "search refuse", "models register", "models shadow", "models retire"}
    assert literal | computed == set(ACTIONS)
    assert {text for text in written if not text.startswith("'")} == {"f'search {action}'", "action"}


def test_only_two_modules_of_the_app_write_to_the_audit_log() -> None:
    writers = {path.name for path in UI.rglob("*.py") if "audit.record(" in path.read_text()}
    assert writers == {"session.py", "jobs.py"}


@pytest.fixture
def page(lk: OpenLake, monkeypatch: pytest.MonkeyPatch) -> OpenLake:
    """A lake with a slice, bound to pages that a user with scope read looks at."""
    from search_app.ui import session

    stock.add(lk, range(3))
    slices.create(lk, "odd", ids=[stock.image_id(1)])
    slices.create(lk, "open", where="confidence >= 0", live=True)
    record.cancel(lk, record.submit(lk, "maintain", {}, Starter(user="anna")).id, Starter(user="anna"))
    session.bind(lk)
    monkeypatch.setattr(session, "_scopes", lambda: IDENTITIES["read"])
    return lk


def _handlers() -> dict[str, Callable[[OpenLake], Any]]:
    from search_app.ui.components import grid
    from search_app.ui.data import active_searches, jobs
    from search_app.ui.pages.drilldown import clustering, node
    from search_app.ui.pages.models import releases
    from search_app.ui.pages.slices import header

    def run() -> Any:
        raise AssertionError("it was done")

    return {
        "slice create": lambda lk: grid.save_slice("new", ids=[stock.image_id(0)]),
        "slice role": lambda lk: header._set_role(slices.get(lk, "odd"), "evaluation"),
        "slice freeze": lambda lk: header._freeze(slices.get(lk, "open")),
        "slice delete": lambda lk: header._delete(slices.get(lk, "odd")),
        "search start": lambda lk: active_searches.begin(examples=[stock.image_id(0)]),
        "cluster": lambda lk: clustering.make(3, method="kmeans", k=2),
        "cluster uncut": lambda lk: node._undo("tree/"),
        "models retire": lambda lk: releases._change("models retire", None, run),  # type: ignore[arg-type]
        "a job": lambda lk: jobs.start("maintain", {}),
        "a job again": lambda lk: jobs.retry(current.list(lk)[0]),
    }


@pytest.mark.parametrize("handler", ["slice create", "slice role", "slice freeze", "slice delete", "search start",
                                     "cluster", "cluster uncut", "models retire", "a job", "a job again"])  # fmt: skip
def test_a_reader_s_call_of_a_handler_changes_nothing(page: OpenLake, handler: str) -> None:
    """The handler itself, as a hidden button or a replayed message would call it."""
    before = versions(page)
    call(page, handler)
    assert versions(page) == before


@pytest.mark.parametrize("handler", ["slice create", "slice role", "slice freeze", "slice delete"])
def test_an_editor_s_call_writes_and_leaves_a_row_in_the_audit_log(
    page: OpenLake, monkeypatch: pytest.MonkeyPatch, handler: str
) -> None:
    from search_app.ui import session

    monkeypatch.setattr(session, "_scopes", lambda: IDENTITIES["edit"])
    monkeypatch.setattr(session, "put", lambda **_: None)
    before = versions(page)
    call(page, handler)
    assert {name for name, version in versions(page).items() if version != before[name]} == {"slices", "audit"}


def versions(page: OpenLake) -> dict[str, int]:
    return {name: page.version(name) for name in ("slices", "slice_tags", "clusters", "searches", "audit", "jobs")}


def call(page: OpenLake, handler: str) -> None:
    from streamlit.runtime.scriptrunner import RerunException

    with suppress(NotAllowed, RerunException):
        _handlers()[handler](page)
