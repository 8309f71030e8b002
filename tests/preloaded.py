"""Imports what serving needs; not Lance, which a fork must be the first to use, nor torch, which few need."""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import suppress

SERVER = ("search_app.server.server", "search_app.cli.serve", "duckdb", "pyarrow.dataset")
APP = ("streamlit.web.server.starlette.starlette_app",)

for name in SERVER:
    importlib.import_module(name)
with suppress(ImportError):
    for name in APP:
        importlib.import_module(name)
    pages = importlib.import_module("search_app.ui.pages")
    for module in pkgutil.walk_packages(pages.__path__, f"{pages.__name__}."):
        importlib.import_module(module.name)
