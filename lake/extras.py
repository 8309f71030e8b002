"""Imports optional dependencies where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from lake.errors import MissingExtra


def require(module: str, package: str, extra: str) -> Any:
    """Imports an optional package. Raises MissingExtra, naming package and extra, if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(package, extra) from error
