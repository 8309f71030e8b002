"""The table of docs/access.md: which scope each request, action of a page and kind of job needs.

`python -m tests.access_table` writes it into the page; a test checks that the page has it.
"""

from __future__ import annotations

from pathlib import Path

from search_app.jobs.kinds import KINDS
from search_app.security.page_actions import ACTIONS
from search_app.security.scopes import ROUTES

PAGE = Path(__file__).parent.parent / "docs" / "access.md"
START, END = "<!-- access -->\n", "<!-- /access -->"


def table() -> str:
    """The text between the page's two marks."""
    scopes = dict.fromkeys(["no key", "ingest", "feedback", "read", "sql", "edit", "admin"], "")
    rows = []
    for scope in scopes:
        own = None if scope == "no key" else scope
        requests = ", ".join(f"`{method} {path.replace('{id}', 'ID')}`" for method, path, s in ROUTES if s == own)
        actions = ", ".join(name for name, s in ACTIONS.items() if s == own)
        jobs = ", ".join(
            sorted(name for name, kind in KINDS.items() if kind.scope == own and "tests" not in kind.module)
        )
        rows.append(f"| {scope} | {requests} | {actions} | {jobs} |")
    return "\n".join(["| scope | requests | actions of pages | jobs |", "|---|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    page = PAGE.read_text()
    before, _, rest = page.partition(START)
    PAGE.write_text(before + START + table() + END + rest.partition(END)[2])
