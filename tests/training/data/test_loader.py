"""A slice as torch datasets: every image once an epoch over all shards, and workers in processes of their own."""

from __future__ import annotations

import os
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from embeddings.embedders import torch_import
from lake import ids, slices
from lake.errors import BadInput, CouldNot
from lake.ingest import ingest
from lake.open_lake import OpenLake
from lake.slices.dataset import SliceDataset
from tests import pictures

torch_import.torchvision()
from training.data.loader import SliceStream, data_loader  # noqa: E402


def mean(picture: Any) -> float:
    """A transform that pickles."""
    return float(np.asarray(picture).mean())


@pytest.fixture
def cells(lk: OpenLake, tmp_path: Path) -> SliceDataset:
    """Seven images in two classes."""
    for name, count in (("good", 4), ("bad", 3)):
        pictures.folder(tmp_path / "in" / name, count, seed=count)
    ingest.ingest(lk, tmp_path / "in", workers=1)
    slices.create(lk, "s", where="true")
    made: SliceDataset = lk.slice("s").dataset()
    return made


def shown(stream: SliceStream) -> list[str]:
    """image_ids in the order they come, by the pictures themselves."""
    dataset, names = stream.dataset, stream.dataset.table()["image_id"].to_pylist()
    by_bytes = {np.asarray(dataset[i][0]).tobytes(): names[i] for i in range(len(dataset))}
    return [by_bytes[np.asarray(picture).tobytes()] for picture, _ in stream]


def test_a_slice_is_a_map_style_dataset(cells: SliceDataset, lk: OpenLake, tmp_path: Path) -> None:
    assert (len(cells), cells.classes, cells.task) == (7, ["bad", "good"], "classification")
    table = cells.table().to_pylist()
    for i, row in enumerate(table):
        picture, target = cells[i]
        folder = tmp_path / "in" / row["label"]
        found = next(p for p in folder.iterdir() if ids.image_id(p.read_bytes()) == row["image_id"])
        assert target == cells.class_to_idx[found.parent.name]
        assert (np.asarray(picture) == np.asarray(Image.open(found))).all()
    assert [t for _, t in cells.__getitems__([3, 0, 3, -1])] == [cells[i][1] for i in (3, 0, 3, 6)]
    with pytest.raises(IndexError):
        cells[7]
    with pytest.raises(BadInput, match="no image of the slice has a label for detection"):
        lk.slice("s").dataset(task="detection")
    with pytest.raises(BadInput, match="'bad', which is not in `classes`"):
        lk.slice("s").dataset(classes=["good"])


@given(st.integers(0, 400), st.integers(1, 4), st.integers(0, 3), st.sampled_from([1, 3, 32]), st.integers(0, 5))
def test_every_image_once_an_epoch_over_all_shards(
    count: int, world: int, workers: int, block: int, epoch: int
) -> None:
    """However many ranks and workers; ranks differ by one at most; another epoch is another order."""

    class Sized:
        uri = "lake"

        def __len__(self) -> int:
            return count

    dataset: Any = Sized()
    seen: list[int] = []
    sizes = []
    for rank in range(world):
        stream = SliceStream(dataset, seed=1, block=block, rank=rank, world=world)
        stream.set_epoch(epoch)
        mine: list[int] = []
        for worker in range(max(workers, 1)):
            info = SimpleNamespace(id=worker, num_workers=workers) if workers else None
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch_import.torch().utils.data, "get_worker_info", lambda info=info: info)
                windows = [*stream.windows()]
                mine += [int(i) for window in windows for i in window]
                passed = sum(map(len, windows)) // 2
                stream.set_epoch(epoch, passed)
                rest = [int(i) for window in stream.windows() for i in window]
                assert rest == [int(i) for window in windows for i in window][passed:]
                stream.set_epoch(epoch)
        assert len(mine) == len(stream)
        sizes.append(len(mine))
        seen += mine
    assert Counter(seen) == Counter(range(count))
    assert max(sizes) - min(sizes) <= 1
    if count > 100:
        one, other = SliceStream(dataset, seed=1, block=block), SliceStream(dataset, seed=2, block=block)
        assert one.order().tolist() != other.order().tolist()


def test_a_stream_gives_the_slices_images(cells: SliceDataset) -> None:
    stream = SliceStream(cells, seed=3)
    first, again = shown(stream), shown(stream)
    stream.set_epoch(1)
    assert first == again != shown(stream)
    assert sorted(first) == sorted(cells.table()["image_id"].to_pylist())
    stream.shuffle = False
    assert shown(stream) == cells.table()["image_id"].to_pylist()


@pytest.mark.soak  # each worker loads torch
def test_workers_of_their_own_processes(lk: OpenLake, cells: SliceDataset) -> None:
    """Lance was used here before, so that forked workers would hang: these do not."""
    dataset = lk.slice("s").dataset(transform=mean)
    wanted = sorted(dataset[i] for i in range(len(dataset)))
    found = [*data_loader(SliceStream(dataset), num_workers=2, batch_size=2)]
    pairs = [p for values, targets in found for p in zip(values.tolist(), targets.tolist(), strict=True)]
    assert sorted(pairs) == wanted


def test_a_copy_in_another_process_opens_the_lake_itself(cells: SliceDataset) -> None:
    """And a forked one says so, instead of hanging."""
    copy = ForkingPickler.loads(ForkingPickler.dumps(cells))  # as a worker gets it
    assert copy[0][1] == cells[0][1]
    copy._process = os.getppid()
    with pytest.raises(CouldNot, match="forkserver"):
        copy[0]
