"""A process of its own that promotes a run when a file appears, and says what came of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import lake
from lake.errors import LakeloopError
from training.registry import promotion, versions


def main(uri: str, run: str, go: Path) -> None:
    opened = lake.open(uri)
    versions.get(opened, promotion.register(opened, run).id)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not go.exists():
        time.sleep(0.001)
    try:
        sys.stdout.write(f"promoted {promotion.promote(opened, run).id}\n")
    except LakeloopError as error:
        sys.stdout.write(f"{error}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
