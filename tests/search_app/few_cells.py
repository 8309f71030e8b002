"""A small demo: the solar cells' story with a few of them, every one checked. Built once for all who test with it."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.search_app.browsing import MISSING, ROOT

NEEDED = ("elpv_dataset", "sklearn")
LACKING = MISSING + [name for name in NEEDED if importlib.util.find_spec(name) is None]
NEW_KIND = 24

_BUILD = """
import sys
from search_app.demo import stream
from search_app.demo.cells import Story, cells, make_story
from search_app.demo.quickstart import quickstart
stream.CHECKED_SHARE = 1.0
whole = make_story(cells())
new = [one for one in whole.production if one[0].kind == "polycrystalline"][:int(sys.argv[2])]
old = [one for one in whole.production if one[0].kind == "monocrystalline"][:60]
story = Story(whole.training[:40], sorted(new + old, key=lambda one: one[1]), whole.held_out[:4])
quickstart(sys.argv[1], story=story)
"""


def few_cells(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> str:
    """The URI of a copy of its own, in `folder`."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):  # other processes test with it, too
        shared = shared.parent
    built = shared / "few-cells.lake"
    with (shared / "few-cells.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            making = shared / "few-cells.part"
            command = [sys.executable, "-c", _BUILD, str(making), str(NEW_KIND)]
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT, timeout=600)
            making.rename(built)
    path = folder / "solar.lake"
    shutil.copytree(built, path)
    return str(path)
