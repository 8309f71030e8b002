"""One process, or several processes that train one model: torchrun's, with DistributedDataParallel.

It is written for GPUs but not yet tested on any; two CPU processes (gloo) are tested. A run of several processes can be
resumed, but is not guaranteed to be equal bit for bit.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from embeddings.embedders import torch_import
from lake.errors import BadInput

if TYPE_CHECKING:
    import torch


class Processes:
    """A context manager. `rank` of `world` as torchrun sets them in the environment; 0 of 1 for a single process."""

    def __init__(self, device: str = "auto") -> None:
        """`device`: auto (CUDA if there is a device), cpu or cuda. Raises BadInput if there is no such device."""
        module = torch_import.torch()
        self._torch = module
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if device == "auto":
            device = "cuda" if module.cuda.is_available() else "cpu"
        if device not in ("cpu", "cuda"):
            raise BadInput(f"device {device!r} is not one of auto, cpu, cuda")
        if device == "cuda":
            if not module.cuda.is_available():
                raise BadInput("this machine has no CUDA device; use --device cpu")
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            module.cuda.set_device(device)
        self.device: torch.device = module.device(device)

    @property
    def first(self) -> bool:
        """Whether this process writes the run's record."""
        return self.rank == 0

    def __enter__(self) -> Processes:
        if self.world > 1 and not self._torch.distributed.is_initialized():
            self._torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(self, *_: object) -> None:
        if self.world > 1:
            self._torch.distributed.destroy_process_group()

    def shared(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network that the loss must call: it averages gradients over all processes."""
        if self.world == 1:
            return network
        on = [self.device.index] if self.device.type == "cuda" else None
        return self._torch.nn.parallel.DistributedDataParallel(network, device_ids=on)

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.world == 1:
            return value
        box = [value]
        self._torch.distributed.broadcast_object_list(box, 0, device=self.device)
        return box[0]
