"""The tables of docs/access.md: which scope each request, action of a page, kind of job and command needs.

`python -m tests.access_table` writes them into the page; a test checks that the page has them. They come from what the
code enforces: the routes of `scopes.py`, the handlers that pages declare, the kinds of jobs, the parser of commands.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from search_app.cli.main import _parser
from search_app.jobs.kinds import KINDS
from search_app.security.page_actions import ACTIONS
from search_app.security.scopes import ROUTES

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "access.md"
UI = ROOT / "search_app" / "ui"
START, END = "<!-- access -->\n", "<!-- /access -->"
SCOPES = ("ingest", "feedback", "read", "sql", "edit", "admin")


class Handler(NamedTuple):
    """A function of the app that does an action of the table: its module below search_app.ui, and its name."""

    action: str
    module: str
    function: str


class Command(NamedTuple):
    """A command: its words after `lakeloop`, and whether it writes the lake."""

    words: str
    writes: bool
    parser: argparse.ArgumentParser


def handlers() -> list[Handler]:
    """Every function below search_app/ui that is a `session.handler`, or writes within `session.acting`."""
    found = []
    for path in sorted(UI.rglob("*.py")):
        module = ".".join(path.relative_to(UI).with_suffix("").parts).removesuffix(".__init__")
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and module != "session":
                within = [item.context_expr for node in ast.walk(function) if isinstance(node, ast.With)
                          for item in node.items]  # fmt: skip
                found += [
                    Handler(ast.literal_eval(call.args[0]), module, function.name)
                    for call in (*function.decorator_list, *within)
                    if isinstance(call, ast.Call) and ast.unparse(call.func) in ("session.handler", "session.acting")
                ]
    return found


def commands() -> list[Command]:
    """Every command of the parser, also those that have commands below them."""
    return sorted(_commands(_parser(), ""), key=lambda command: command.words)


def _commands(parser: argparse.ArgumentParser, words: str) -> Iterator[Command]:
    if parser.get_default("run") is not None:
        yield Command(words, parser.get_default("writes"), parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from _commands(below, f"{words} {name}".strip())


def tables() -> str:
    """The text between the page's two marks."""
    rows = []
    for scope in (None, *SCOPES):
        requests = ", ".join(f"`{method} {path.replace('{id}', 'ID')}`" for method, path, s in ROUTES if s == scope)
        actions = ", ".join(name for name, s in ACTIONS.items() if s == scope)
        jobs = ", ".join(
            sorted(name for name, kind in KINDS.items() if kind.scope == scope and "tests" not in kind.module)
        )
        rows.append(f"| {scope or 'no key'} | {requests} | {actions} | {jobs} |")
    for right, writes in (("whoever may read the lake's files", False), ("whoever may write them", True)):
        listed = ", ".join(f"`{command.words}`" for command in commands() if command.writes == writes)
        rows.append(f"| {right} | {listed} | | |")
    by_action = [
        f"| {action} | {scope} | {', '.join(f'`{h.module}.{h.function}`' for h in handlers() if h.action == action)} |"
        for action, scope in ACTIONS.items()
    ]
    return "\n".join(
        [
            "| scope | requests; commands | actions of pages | jobs |", "|---|---|---|---|", *rows,
            "", "The functions below `search_app.ui` that do an action, and refuse it to a user without the scope:",
            "", "| action | scope | functions |", "|---|---|---|", *by_action,
        ]
    ) + "\n"  # fmt: skip


if __name__ == "__main__":
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    PAGE.write_text(before + START + tables() + END + rest.partition(END)[2])
