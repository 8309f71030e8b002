"""A slice as a stream for torch: read in batches, shuffled in each epoch, divided among all workers and ranks.

    stream = SliceStream(lake.slice("rainy").dataset(transform=to_tensor), seed=1)
    for epoch in range(10):
        stream.set_epoch(epoch)
        for images, targets in data_loader(stream, batch_size=64, num_workers=4): ...

Shuffling: blocks of `block` neighbours in storage come in a random order over the whole slice; windows of at least
WINDOW images from many blocks are read at once and shuffled. With block=1, the default on a disk, the order is a
uniform permutation of the slice. On object storage the default is 32: one request reads neighbours, and a window has 16
blocks from anywhere. The order depends only on seed and epoch. It is cut into equal stretches, first by rank and then
by worker: each image occurs exactly once in an epoch, and ranks differ by at most one image.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import data

from embeddings.embedders import torch_import

if TYPE_CHECKING:
    from lake.slices.dataset import SliceDataset

# A worker process imports this module before it unpickles the dataset, whose transform may need torchvision.
torch_import.torchvision()

# Images in a read: enough to keep a disk or a store busy, few enough for memory.
WINDOW = 64
_REMOTE_BLOCK = 32
_BLOCKS_A_WINDOW = 16


class SliceStream(data.IterableDataset):  # type: ignore[misc]
    """Yields `dataset[i]`, each image once in an epoch over all ranks and workers.

    `rank` and `world`: those of torch.distributed if it is initialised, else 0 of 1.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        *,
        seed: int = 0,
        shuffle: bool = True,
        block: int | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__()
        if block is not None and block < 1:
            raise ValueError(f"block is {block}; it must be at least 1")
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.dataset, self.seed, self.shuffle = dataset, seed, shuffle
        self.block = block or (_REMOTE_BLOCK if "://" in dataset.uri else 1)
        self.rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self.world = world if world is not None else torch.distributed.get_world_size() if distributed else 1
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Sets the epoch of the next iteration. `start`: how many images each worker skips, to continue within an epoch
        with the same numbers of ranks and workers. It does not reach persistent workers.
        """
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """The number of images of this rank."""
        first, last = _stretch(len(self.dataset), self.rank, self.world)
        return last - first

    def order(self) -> np.ndarray:
        """This epoch's order of the whole slice: positions in `dataset`, each once. The same in every process."""
        count = len(self.dataset)
        if not self.shuffle:
            return np.arange(count)
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.block == 1:
            return rng.permutation(count)
        starts = rng.permutation(np.arange(0, count, self.block))
        blocks = [np.arange(s, min(s + self.block, count)) for s in starts.tolist()]
        return np.concatenate(blocks) if blocks else np.arange(0)

    def windows(self) -> Iterator[np.ndarray]:
        """The positions that this process reads, one read at a time."""
        first, last = _stretch(len(self.dataset), self.rank, self.world)
        worker = data.get_worker_info()
        if worker is not None:
            begin, end = _stretch(last - first, worker.id, worker.num_workers)
            first, last = first + begin, first + end
        mine = self.order()[first:last]
        size = max(WINDOW, self.block * _BLOCKS_A_WINDOW)
        rng = np.random.default_rng((self.seed, self.epoch, first))
        passed = self.start
        for begin in range(0, len(mine), size):
            window = mine[begin : begin + size]
            if self.shuffle and self.block > 1:
                window = rng.permutation(window)
            if passed < len(window):
                yield window[passed:]
            passed = max(0, passed - len(window))

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        # The next window is read while this one is decoded.
        with ThreadPoolExecutor(1) as reader:
            windows = self.windows()
            window = next(windows, None)
            coming = None if window is None else reader.submit(self.dataset.read, window)
            while window is not None and coming is not None:
                files = coming.result()
                positions, window = window, next(windows, None)
                coming = None if window is None else reader.submit(self.dataset.read, window)
                for index, file in zip(positions.tolist(), files, strict=True):
                    yield self.dataset.sample(index, file)


def data_loader(stream: Any, *, num_workers: int = 0, **options: Any) -> Any:
    """torch's DataLoader over a SliceStream or a SliceDataset, with workers in which Lance works.

    A forked worker would hang in Lance. `forkserver` starts workers from a clean process: the dataset and its transform
    must be picklable (a function of a module, no lambda).
    """
    if num_workers and "multiprocessing_context" not in options:
        context = multiprocessing.get_context("forkserver")
        # The process that workers are forked from loads torch once; otherwise each worker would need seconds.
        context.set_forkserver_preload(["training.data.loader"])
        options["multiprocessing_context"] = context
    return data.DataLoader(stream, num_workers=num_workers, **options)


def _stretch(count: int, part: int, parts: int) -> tuple[int, int]:
    """Start and end of the part-th of `parts` equal stretches."""
    return part * count // parts, (part + 1) * count // parts
