"""What serving imports, and what a training loader does; not Lance, which a fork must be the first to use."""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import suppress

with suppress(ImportError):
    pass
with suppress(ImportError):
    import search_app.ui.pages as pages

    for module in pkgutil.walk_packages(pages.__path__, f"{pages.__name__}."):
        importlib.import_module(module.name)
