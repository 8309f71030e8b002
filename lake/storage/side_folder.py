"""Where a lake's helper files lie: in its folder or, if nobody can write there, in the user's cache."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lake.storage.store import Lake


def side_folder(lake: Lake, name: str) -> Path:
    """The absolute path of the lake's folder `name` for files that are not tables. It may not exist yet."""
    if lake.folder is not None and os.access(lake.folder, os.W_OK):
        return lake.folder.absolute() / name  # another process that reads the files may have another working folder
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "lakeloop" / hashlib.sha256(lake.uri.encode()).hexdigest()[:16] / name
