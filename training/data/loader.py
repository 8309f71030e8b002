"""A slice as a stream for torch: read from the lake in batches, shuffled anew each epoch, shared out to all workers.

    stream = SliceStream(lake.slice("rainy").dataset(transform=to_tensor), seed=1)
    for epoch in range(10):
        stream.set_epoch(epoch)
        for pictures, targets in data_loader(stream, batch_size=64, num_workers=4): ...

Shuffling: blocks of `block` neighbours in storage are put in a random order over the whole slice; then windows of at
least WINDOW images of many blocks are read at once and shuffled. With block=1, the default on a disk, that is a uniform
permutation of the slice. On object storage the default is 32: neighbours come in one request, and a window has 16
blocks from anywhere. The order depends on seed and epoch alone. It is cut into equal stretches, first by rank and then
by worker: each image comes exactly once an epoch, and ranks differ by one image at most.
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

# A worker process comes here before it unpickles the dataset, whose transform is likely torchvision's.
torch_import.torchvision()

# Images of a read: enough to keep a disk or a store busy, few enough to hold twice.
WINDOW = 64
_REMOTE_BLOCK = 32
_BLOCKS_A_WINDOW = 16


class SliceStream(data.IterableDataset):  # type: ignore[misc]
    """Yields what `dataset[i]` gives, each image once an epoch over all ranks and workers.

    `rank` and `world`: of torch.distributed when it is initialised, else 0 of 1.
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
            raise ValueError(f"block is {block}, not at least 1")
        spread = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.dataset, self.seed, self.shuffle = dataset, seed, shuffle
        self.block = block or (_REMOTE_BLOCK if "://" in dataset.uri else 1)
        self.rank = rank if rank is not None else torch.distributed.get_rank() if spread else 0
        self.world = world if world is not None else torch.distributed.get_world_size() if spread else 1
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """What the next iteration gives. `start`: how many images each shard passes over, to go on in the middle of an
        epoch with as many ranks and workers as before. Persistent workers do not hear of it.
        """
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """How many images this rank gets."""
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
        """The positions that this process gives, a read at a time."""
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
                here, window = window, next(windows, None)
                coming = None if window is None else reader.submit(self.dataset.read, window)
                for index, file in zip(here.tolist(), files, strict=True):
                    yield self.dataset.sample(index, file)


def data_loader(stream: Any, *, num_workers: int = 0, **options: Any) -> Any:
    """torch's DataLoader over a SliceStream or a SliceDataset, with workers that Lance works in.

    A forked worker would hang in Lance. `forkserver` starts them from a clean process: what the dataset holds must
    pickle (a transform of a module, no lambda).
    """
    if num_workers and "multiprocessing_context" not in options:
        context = multiprocessing.get_context("forkserver")
        # Torch is loaded once, by the process that workers are forked from: seconds for each of them otherwise.
        context.set_forkserver_preload(["training.data.loader"])
        options["multiprocessing_context"] = context
    return data.DataLoader(stream, num_workers=num_workers, **options)


def _stretch(count: int, part: int, parts: int) -> tuple[int, int]:
    """From where to where the part-th of `parts` equal stretches goes."""
    return part * count // parts, (part + 1) * count // parts
