"""Stand-ins for the model processes beside a server, for worker processes to import: no library, no network."""

from __future__ import annotations

from training.tasks.task import Prediction


def decode(files: list[tuple[str, bytes]], preprocessing: str, most: float) -> list[bytes]:
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
