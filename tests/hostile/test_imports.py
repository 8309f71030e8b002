"""Files of a few kilobytes that mean gigabytes: an import refuses them, and takes what is sound beside them."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from lake.errors import BadInput
from lake.formats import webdataset
from lake.formats.item import Item, ReadOptions
from lake.formats.yolo import reader as yolo
from tests.pictures import encoded, noise

OPTIONS = ReadOptions()
PICTURE = encoded(noise(1, 24, 16))
MOST_MEMORY = 200 << 20


def items(path: Path) -> list[Item]:
    """What the reader gives for the archive, in bounded memory."""
    tracemalloc.start()
    read = list(webdataset.read(path, OPTIONS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_MEMORY, f"{peak >> 20} MiB"
    return read


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_an_alias_in_a_data_yaml_is_refused(tmp_path: Path) -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    path = tmp_path / "data.yaml"
    path.write_text("a0: &a0 [x]\n" + "\n".join(levels) + "\nnames: *a8\n")
    assert path.stat().st_size < 500
    with pytest.raises(BadInput, match="it has an alias"):
        list(yolo.read(path, OPTIONS))


def test_a_header_of_an_archive_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "first.png", PICTURE)
        info = tarfile.TarInfo("second.png")
        info.pax_headers = {"comment": "x" * (20 << 20)}
        tar.addfile(info)
    assert path.stat().st_size < 1 << 20
    first, broken = items(path)
    assert (first.error, broken.error) == (None, "broken archive: a header has 20 MiB")


def test_a_long_name_of_an_archive_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "x" * (50 << 20), b"")
    [broken] = items(path)
    assert broken.error == "broken archive: a header has 50 MiB"


def test_the_files_of_one_name_are_bounded_together(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for number in range(120):
            add(tar, f"one.t{number}", bytes(7 << 20) if number < 20 else b"x")
        add(tar, "two.png", PICTURE)
        add(tar, "two.json", json.dumps({"label": "cat"}).encode())
    read = items(path)
    assert any("too much of one name" in str(item.error) for item in read)
    assert [item.error for item in read if item.source.endswith("two.png")] == [None]


def test_a_member_of_text_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        add(tar, "one.json", b"[" * (9 << 20))
        add(tar, "one.png", PICTURE)
    assert [item.error for item in items(path)] == ["it has 9 MiB", None]


def test_an_archive_of_very_many_members_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(3_000):
            add(tar, f"{number}.txt", b"")
    tracemalloc.start()
    count = sum(1 for _ in webdataset.read(path, OPTIONS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3_000
    assert peak < 2 << 20
