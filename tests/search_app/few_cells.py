"""A small demo: the solar cells' story with a few of them, every one checked. Built once for all who test with it."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.search_app.browsing import MISSING

NEEDED = ("elpv_dataset", "sklearn")
LACKING = MISSING + [name for name in NEEDED if importlib.util.find_spec(name) is None]
NEW_KIND = 24


def _build(uri: str) -> None:
    """In this process, which has the libraries: to import them anew is a third of the work."""
    from search_app.demo import stream
    from search_app.demo.cells import Story, cells, make_story
    from search_app.demo.quickstart import quickstart

    whole = make_story(cells())
    new = [one for one in whole.production if one[0].kind == "polycrystalline"][:NEW_KIND]
    old = [one for one in whole.production if one[0].kind == "monocrystalline"][:60]
    story = Story(whole.training[:40], sorted(new + old, key=lambda one: one[1]), whole.held_out[:4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "CHECKED_SHARE", 1.0)
        quickstart(uri, story=story)


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
            with ThreadPoolExecutor(1) as aside:  # a browser's tests have a loop of their own on this thread
                aside.submit(_build, str(making)).result()
            making.rename(built)
    path = folder / "solar.lake"
    shutil.copytree(built, path)
    return str(path)
