"""Re-encodes untrusted images as plain JPEG, in a worker process with tight limits.

Images that the API accepts by POST and images that it re-encodes for browsers both pass through this worker, so that a
hostile file can kill only the worker. This module knows nothing of HTTP.
"""

from __future__ import annotations

import threading

from lake.errors import UnreadableImage
from lake.images import decode
from lake.images.image_header import read_header
from lake.images.levels import Levels
from lake.images.workers import HTTP_MEMORY_BYTES, WorkerDied, WorkerPool

LONGEST_SIDE = 2_048  # more than any embedder reads, and more than the detail panel of the app shows
SECONDS = 20.0
MOST_BYTES = 32 << 20  # more than a JPEG of these pixels has


def to_jpeg(data: bytes, max_megapixels: float, longest_side: int, levels: Levels | None) -> tuple[bytes | None, str]:
    """Runs in the worker. Returns the JPEG, or None and the reason."""
    try:
        return decode.normalise(data, max_megapixels, longest_side, levels), ""
    except UnreadableImage as error:
        return None, str(error)


class Uploads:
    """A worker process, started at the first image. Threads may share it: it decodes one image at a time."""

    def __init__(self) -> None:
        self._pool: WorkerPool | None = None
        self._lock = threading.Lock()

    def jpeg(self, data: bytes, max_megapixels: float = decode.MAX_MEGAPIXELS, levels: Levels | None = None) -> bytes:
        """The image as JPEG: upright, RGB, at most 2,048 pixels long. Raises UnreadableImage.

        `levels`: black and white as recorded in the lake.
        """
        read_header(data, max_megapixels)  # a bad header is refused without the worker
        with self._lock:
            if self._pool is None:
                self._pool = WorkerPool(
                    f"{__name__}:to_jpeg", 1, memory_bytes=HTTP_MEMORY_BYTES, timeout=SECONDS, answer_bytes=MOST_BYTES
                )
            result = self._pool.run(data, max_megapixels, LONGEST_SIDE, levels)
        if isinstance(result, WorkerDied):
            raise UnreadableImage(result.reason)
        jpeg, reason = result
        if jpeg is None:
            raise UnreadableImage(str(reason))
        return bytes(jpeg)

    def close(self) -> None:
        """Ends the worker."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()
            self._pool = None
