"""Finds the images of the benchmarks: archives in a data folder, or any folder of JPEGs."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from benchmarks.harness.rounds import ROOT

PHOTOGRAPHS = "imagenet-samples-600.tar"
SMALL_FILES = "cifar10.tar.gz"
VARIABLE = "LAKELOOP_BENCH_DATA"


class DataAbsent(Exception):
    """The data is missing; the message says what folder to give."""


def folder(option: Path | None) -> Path:
    """The path of `--data`, else $LAKELOOP_BENCH_DATA, else ../shared/data. Raises DataAbsent."""
    path = option or Path(os.environ.get(VARIABLE) or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        raise DataAbsent(f"no benchmark data in {path}: give any folder of JPEGs with --data or ${VARIABLE}")
    return path


def photographs(data: Path, work: Path, most: int) -> Path:
    """A flat folder under `work` with at most `most` photographs. Raises DataAbsent."""
    out = work / "photographs"
    out.mkdir()
    if (data / PHOTOGRAPHS).is_file():
        _unpack(data / PHOTOGRAPHS, out, most)
        return out
    files = sorted(p for p in data.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise DataAbsent(f"{data} has neither {PHOTOGRAPHS} nor a JPEG: give any folder of JPEGs with --data")
    for number, path in enumerate(files[:most]):
        (out / f"{number:06d}.jpg").write_bytes(path.read_bytes())
    return out


def small_files(data: Path, work: Path, most: int) -> Path | None:
    """A folder of at most `most` tiny JPEGs under `work`, or None if the data has no archive of them."""
    if not (data / SMALL_FILES).is_file():
        return None
    out = work / "small-files"
    out.mkdir()
    _unpack(data / SMALL_FILES, out, most)
    return out


def files_under(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def _unpack(archive: Path, into: Path, most: int) -> None:
    count = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and count < most:
                tar.extract(member, into, filter="data")
                count += 1
