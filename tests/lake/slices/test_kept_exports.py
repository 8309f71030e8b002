"""Exports that lie with the lake: handed out whole, and gone with an image that is erased."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from lake import ids, slices
from lake.ingest import ingest
from lake.open_lake import OpenLake
from lake.slices import kept_exports
from lake.slices.export import export
from lake.upkeep import erasure
from tests import pictures


@pytest.fixture
def made(lk: OpenLake, tmp_path: Path) -> slices.Slice:
    pictures.folder(tmp_path / "in", 4)
    ingest.ingest(lk, tmp_path / "in", workers=1)
    return slices.create(lk, "all", where="true")


def test_the_archive_holds_every_file(lk: OpenLake, made: slices.Slice) -> None:
    folder = kept_exports.folder_of(lk, made, "imagefolder")
    assert kept_exports.of_slice(lk, made) == {}
    assert kept_exports.archive(lk, folder.name) is None
    export(lk, made, folder, "imagefolder")
    export_ = kept_exports.of_slice(lk, made)["imagefolder"]
    assert (export_.name, export_.images) == ("all@1.imagefolder", made.size)
    pieces = kept_exports.archive(lk, export_.name)
    assert pieces is not None
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as archive:
        there = {name: archive.read(name) for name in archive.namelist()}
    assert there == {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {ids.image_id(data) for data in there.values()} >= {*slices.members(lk, made).to_pylist()}


@pytest.mark.parametrize("name", ["", ".", "..", "../all@1.list", "nobody@1.coco", "a/b"])
def test_no_other_folder_is_handed_out(lk: OpenLake, made: slices.Slice, name: str) -> None:
    export(lk, made, kept_exports.folder_of(lk, made, "imagefolder"), "imagefolder")
    assert kept_exports.archive(lk, name) is None


def test_it_goes_with_an_image_that_is_erased(lk: OpenLake, made: slices.Slice) -> None:
    members = slices.members(lk, made).to_pylist()
    other = slices.create(lk, "other", ids=members[1:])
    for one in (made, other):
        export(lk, one, kept_exports.folder_of(lk, one, "imagefolder"), "imagefolder")
    erasure.forget(lk, members[:1], reason="asked to")
    assert [*kept_exports.of_slice(lk, made)] == []
    assert [*kept_exports.of_slice(lk, other)] == ["imagefolder"]
