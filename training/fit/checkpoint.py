"""Checkpoints: weights, optimiser, random generators and progress of a run in one file, written whole or not at all.

A checkpoint is a safetensors file, which can only hold tensors and text; everything else is JSON in its header. A run
that continues from a checkpoint takes the same steps, bit for bit on a CPU with the same number of threads, as a run
that was never stopped. The learning rate and the order of the images are functions of the position and need no state.
"""

from __future__ import annotations

import fcntl
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings.embedders import torch_import, weights
from lake.errors import BadInput
from training.models import tensor_file

if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]

NAME = "checkpoint.safetensors"


@dataclass
class TrainingProgress:
    """`epoch` epochs, then `batch` batches of the next epoch are done; `step` optimiser steps in all.

    `loss` and `images`: sums over the batches of the unfinished epoch. `best`: the metric of `best_epoch`, whose
    weights are kept; `waited`: epochs since then. `reference`: the metric of each protected slice, which must not fall
    by more than the margin. `ended`: why no epoch follows; empty while training goes on.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss: float = 0.0
    images: int = 0
    best: float | None = None
    best_epoch: int | None = None
    waited: int = 0
    reference: dict[str, float] = field(default_factory=dict)
    ended: str = ""
    threads: int = 0


def save(
    path: Path,
    network: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: TrainingProgress,
    best: State | None,
) -> None:
    """Writes the checkpoint durably. A kill at any moment leaves this checkpoint or the one before."""
    torch = torch_import.torch()
    tensors = {f"network/{k}": v for k, v in network.state_dict().items()}
    names = {id(p): name for name, p in network.named_parameters()}
    for parameter, state in optimiser.state.items():
        tensors |= {f"optimiser/{names[id(parameter)]}/{k}": v for k, v in state.items() if v is not None}
    tensors |= {f"best/{k}": v for k, v in (best or {}).items()}
    tensors["random/torch"] = torch.get_rng_state()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    python = random.getstate()
    header = {
        "progress": asdict(progress),
        "python": [python[0], list(python[1]), python[2]],
        "numpy": {**numpy_state, "state": {k: np.asarray(v).tolist() for k, v in numpy_state["state"].items()}},
    }
    tensor_file.write(path, tensors, header)


def load(
    path: Path, network: torch.nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[TrainingProgress, State | None]:
    """Restores network, optimiser and random generators. Returns the progress and the best weights so far.

    Without a file nothing is restored: a run writes its first checkpoint after its first epoch or steps. Raises
    BadInput for a file that is damaged or of another network.
    """
    if not path.exists():
        return TrainingProgress(), None
    torch = torch_import.torch()
    tensors, header = tensor_file.read(path)
    try:
        parts: dict[str, dict[str, Any]] = {"network": {}, "optimiser": {}, "best": {}, "random": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        weights.load_into(network, parts["network"], str(path))
        parameters = dict(network.named_parameters())
        for name, tensor in parts["optimiser"].items():
            parameter, _, key = name.rpartition("/")
            target = parameters[parameter]
            # In the memory order of its parameter: another order gives other rounding.
            if tensor.shape == target.shape:
                tensor = torch.empty_like(target, dtype=tensor.dtype).copy_(tensor)
            optimiser.state[target][key] = tensor
        torch.set_rng_state(parts["random"]["torch"])
        version, numbers, gauss = header["python"]
        random.setstate((version, tuple(numbers), gauss))
        state = header["numpy"]
        inner = {k: np.asarray(v, np.uint32) if isinstance(v, list) else v for k, v in state["state"].items()}
        np.random.set_state({**state, "state": inner})
        return TrainingProgress(**header["progress"]), parts["best"] or None
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is no checkpoint of this run: {error}") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds all random generators; afterwards restores them, and torch's number of threads."""
    torch = torch_import.torch()
    before = random.getstate(), np.random.get_state(), torch.get_rng_state(), torch.get_num_threads()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
        torch.set_num_threads(before[3])


@contextmanager
def locked(folder: Path, take: bool = True) -> Iterator[None]:
    """Locks the folder of a run or search against other processes. A lock ends with its process. Raises BadInput."""
    if not take:
        yield
        return
    if not folder.is_dir():
        raise BadInput(f"{folder} does not exist: its files were removed; start again")
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInput(f"{folder.parent.name}/{folder.name} is in use by another process") from error
        yield
