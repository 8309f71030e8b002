"""Stand-ins for the model processes beside a server, for worker processes to import: no library, no network."""

from __future__ import annotations

import os
import time

from lake.images.levels import Levels
from training.tasks.task import Prediction


def decode(files: list[tuple[str, bytes, Levels | None]], preprocessing: str, most: float) -> list[bytes]:
    """A decoder that dies of some files."""
    del preprocessing, most
    if files[0][1] == b"crash":
        raise SystemExit(1)
    return [files[0][1]]


def think(uri: str, run: str, names: list[str], prepared: list[bytes]) -> tuple[str, list[Prediction | str]]:
    """A model that crashes on some images, and has no prediction for others."""
    del uri, run
    if b"lethal" in prepared:
        raise SystemExit(1)
    pairs = zip(names, prepared, strict=True)
    return "how", ["no vector" if data == b"blank" else Prediction(name, data.decode()) for name, data in pairs]


def canary(uri: str, run: str, names: list[str], prepared: list[bytes]) -> tuple[str, list[Prediction | str]]:
    """A model that says `fine`. The run in CANARY disagrees, is slow, or fails, as CANARY_IS says."""
    del uri, prepared
    behaviour = os.environ["CANARY_IS"] if run == os.environ["CANARY"] else "good"
    time.sleep(0.1 if behaviour == "slow" else 0.002)
    if behaviour == "failing":
        return "how", ["no vector" for _ in names]
    return "how", [Prediction(name, "odd" if behaviour == "disagreeing" else "fine") for name in names]
