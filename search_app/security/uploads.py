"""A stranger's image bytes become a plain JPEG, decoded in a worker process with tight limits.

What the API accepts by POST and what it re-encodes for browsers both go through here, so that a hostile file
can kill one small worker and nothing else. It knows nothing of HTTP.
"""

from __future__ import annotations

import threading

from lake.errors import UnreadableImage
from lake.images import decode
from lake.images.image_header import read_header
from lake.images.workers import HTTP_MEMORY_BYTES, WorkerDied, WorkerPool

LONGEST_SIDE = 2_048  # more than any embedder reads or any screen's detail panel shows
SECONDS = 20.0


def normalised(data: bytes, max_megapixels: float, longest_side: int) -> tuple[bytes | None, str]:
    """Runs in the worker: the JPEG, or None and the reason."""
    try:
        return decode.normalise(data, max_megapixels, longest_side), ""
    except UnreadableImage as error:
        return None, str(error)


class Uploads:
    """One worker, started when first needed. Safe between threads: one image at a time."""

    def __init__(self) -> None:
        self._pool: WorkerPool | None = None
        self._lock = threading.Lock()

    def jpeg(self, data: bytes, max_megapixels: float = decode.MAX_MEGAPIXELS_HTTP) -> bytes:
        """The image upright, RGB, at most 2,048 pixels long, as JPEG. Raises UnreadableImage."""
        read_header(data, max_megapixels)  # what it tells need not occupy the worker
        with self._lock:
            if self._pool is None:
                self._pool = WorkerPool(f"{__name__}:normalised", 1, memory_bytes=HTTP_MEMORY_BYTES, timeout=SECONDS)
            result = self._pool.run(data, max_megapixels, LONGEST_SIDE)
        if isinstance(result, WorkerDied):
            raise UnreadableImage(result.reason)
        jpeg, reason = result
        if jpeg is None:
            raise UnreadableImage(str(reason))
        return bytes(jpeg)

    def close(self) -> None:
        """End the worker."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()
            self._pool = None
