"""What servers measure of a canary, in small files beside the lake, so that commands and pages can show it.

One file for each model and server, written at most every two seconds and deleted when the canary ends. A lost file
loses nothing but what is shown: the decision is in the registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.storage.side_folder import side_folder

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.registry.versions import Version

FOLDER = "canaries"
EVERY_SECONDS = 2.0


@dataclass
class MeasurementFile:
    """The file of this server's measurements of one canary."""

    lake: Lake
    version: Version
    _due: float = 0.0
    _path: Path = field(init=False)

    def __post_init__(self) -> None:
        machine = hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]
        self._path = side_folder(self.lake, FOLDER) / f"{self.version.model}.{machine}.{os.getpid()}.json"

    def write(self, facts: Callable[[], dict[str, Any]]) -> None:
        """Writes what `Evidence.facts` returns, unless it did within EVERY_SECONDS. A full disk is no error here."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY_SECONDS
        document = {"canary": _name(self.version), **facts()}
        partial = self._path.with_suffix(".part")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _delete_older(self.lake, self.version)
            partial.write_text(json.dumps(document), "utf-8")
            os.replace(partial, self._path)

    def delete(self) -> None:
        with suppress(OSError):
            self._path.unlink()


def read(lake: Lake, version: Version) -> list[dict[str, Any]]:
    """What each server on this machine (or on the lake's disk) has measured of this canary with this share.

    Each has `images`, `errors` and `disagreement` (value, low, high, n) and `latency_ratio`, as `Evidence.facts`.
    """
    measured = []
    for path in sorted(side_folder(lake, FOLDER).glob(f"{version.model}.*.json")):
        with suppress(OSError, ValueError):
            document = json.loads(path.read_text("utf-8"))
            if document.pop("canary") == _name(version):
                measured.append(document)
    return measured


def sentence(facts: dict[str, Any]) -> str:
    """What one server measured, in words."""
    if not facts["images"]:
        return "no image yet"
    rates = [f"{name} {_rate(facts[name])}" for name in ("errors", "disagreement")]
    ratio = facts["latency_ratio"]
    latency = "not measured yet" if ratio is None else f"{ratio:.2f} times the promoted version's"
    return f"{facts['images']:,} images, {', '.join(rates)}, latency {latency}"


def _delete_older(lake: Lake, version: Version) -> None:
    """Deletes what killed servers left of the model's earlier canaries."""
    for path in side_folder(lake, FOLDER).glob(f"{version.model}.*.json"):
        with suppress(OSError, ValueError):
            canary = str(json.loads(path.read_text("utf-8"))["canary"])
            if canary.startswith(f"{version.model}@") and canary != _name(version):
                path.unlink()


def _rate(rate: dict[str, Any]) -> str:
    if not rate["n"]:
        return "not measured yet"
    return f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"


def _name(version: Version) -> str:
    """The canary with its share: another share is another measurement."""
    return f"{version.id} {version.changed_at.isoformat()}"
