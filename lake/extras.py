"""Optional dependencies, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from lake.errors import MissingExtra


def require(module: str, package: str, extra: str) -> Any:
    """The module of an optional package. Raises MissingExtra, naming package and extra, when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(package, extra) from error
