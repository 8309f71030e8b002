"""Keeps uploaded query images as small files, so that a search by image has a URL.

Content-addressed JPEGs in one folder, the newest `keep` of them. They are not part of the lake: they are never
searched, embedded or counted, and may be deleted at any time. The module knows nothing of HTTP or decoding.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

KEEP = 1_000
_ID = re.compile(r"[0-9a-f]{64}")


class QueryImages:
    """JPEG bytes by their SHA-256 in `folder`: at most `keep` files, the least recently used are removed."""

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        self.folder = folder
        self.keep = keep

    def put(self, jpeg: bytes) -> str:
        """Store `jpeg` and return its id (64 hex). Storing it again only makes it the newest."""
        query_id = hashlib.sha256(jpeg).hexdigest()
        path = self._path(query_id)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            os.utime(path)
            return query_id
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(jpeg)
        os.replace(name, path)
        self._forget_oldest()
        return query_id

    def get(self, query_id: str) -> bytes | None:
        """The JPEG bytes of `query_id`; None if it is unknown, removed or not an id."""
        if not _ID.fullmatch(query_id):
            return None
        try:
            return self._path(query_id).read_bytes()
        except FileNotFoundError:
            return None

    def clear(self) -> int:
        """Removes every query image, including half-written ones; returns their number."""
        paths = [*self.folder.glob("*.jpg"), *self.folder.glob("*.part")]
        for path in paths:
            path.unlink(missing_ok=True)
        return len(paths)

    def _path(self, query_id: str) -> Path:
        return self.folder / f"{query_id}.jpg"

    def _forget_oldest(self) -> None:
        files = sorted(self.folder.glob("*.jpg"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in files[self.keep :]:
            path.unlink(missing_ok=True)


def beside(uri: str) -> QueryImages:
    """The query images of the lake at `uri`: in its own folder, or for object storage in the user's cache."""
    scheme, _, rest = uri.partition("://")
    if not rest:
        return QueryImages(Path(uri) / "queries")
    if scheme == "file":
        return QueryImages(Path(rest) / "queries")
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return QueryImages(Path(cache) / "lakeloop" / name / "queries")
