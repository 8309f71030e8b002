"""A value kept for each open lake: made when first needed, gone with the lake."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from lake.storage.store import Lake

T = TypeVar("T")


class PerLake(Generic[T]):
    """Call it with a lake to get that lake's value. Safe to share between threads.

    The value must not refer to the lake, or neither is ever freed.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: weakref.WeakKeyDictionary[Lake, T] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def __call__(self, lake: Lake) -> T:
        try:
            return self._values[lake]
        except KeyError:
            with self._lock:
                return self._values.setdefault(lake, self._make())
