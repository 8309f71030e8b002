"""serve, quickstart: the app and the HTTP API."""

from __future__ import annotations

import argparse
import os

from search_app.commands.terminal import Add, answer, open_lake


def register(add: Add) -> None:
    for name, run, help in (
        ("serve", _serve, "the app and the HTTP API"),
        ("quickstart", _quickstart, "the demo: build a lake of real solar cells and open the app"),
    ):
        p = add(name, run, help)
        p.add_argument("--host", default="127.0.0.1")
        p.add_argument("--port", type=int, default=8501)
        if name == "serve":
            p.add_argument("--no-ui", action="store_true", help="the HTTP API alone")
        else:
            p.add_argument("--no-serve", action="store_true", help="build only")


def _serve(a: argparse.Namespace) -> int:
    from search_app.server import serve

    serve(open_lake(a).uri, a.host, a.port, ui=not a.no_ui)
    return 0


def _quickstart(a: argparse.Namespace) -> int:
    from search_app.demo import quickstart

    facts = quickstart(a.lake or os.environ.get("LAKELOOP_LAKE") or "solar.lake")
    answer(a, facts, "")
    if not a.no_serve:
        from search_app.server import serve

        serve(facts["lake"], a.host, a.port, ui=True)
    return 0
