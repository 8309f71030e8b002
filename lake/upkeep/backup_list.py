"""The list of the backups made of a lake: `backups.json` in its folder."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lake.storage.store import Lake

FILE = "backups.json"


def add(lake: Lake, path: Path, made_at: dt.datetime, sha256: str) -> None:
    """Adds a backup to the list. `sha256` is the hash of its list of files. The lake must be in a local folder."""
    assert lake.folder is not None
    entry = {"path": str(path.resolve()), "made_at": made_at.isoformat(), "sha256": sha256}
    half = lake.folder / f"{FILE}.part"
    half.write_text(json.dumps([*read(lake), entry], indent=1))
    half.replace(lake.folder / FILE)


def read(lake: Lake) -> list[dict[str, Any]]:
    """The backups made of this lake, oldest first: path, made_at (ISO 8601), sha256. Empty on object storage."""
    path = None if lake.folder is None else lake.folder / FILE
    if path is None or not path.exists():
        return []
    entries: list[dict[str, Any]] = json.loads(path.read_text())
    return entries


def made_since(lake: Lake, moment: dt.datetime | None) -> list[dict[str, Any]]:
    """The backups made since `moment` (all if None): path, made_at, and `there`: whether the path still exists."""
    entries = [e for e in read(lake) if moment is None or dt.datetime.fromisoformat(e["made_at"]) >= moment]
    return [{"path": e["path"], "made_at": e["made_at"], "there": Path(e["path"]).exists()} for e in entries]
