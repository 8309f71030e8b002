"""One process, or several that train one model together: torchrun's, with DistributedDataParallel.

Written for GPUs and not tested on any so far; two CPU processes (gloo) are tested. A run that several processes share
can be resumed, but is not promised to be equal bit for bit.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from embeddings.embedders import torch_import
from lake.errors import BadInput

if TYPE_CHECKING:
    import torch


class Processes:
    """Use as a context manager. `rank` of `world`, from the environment that torchrun sets; alone it is 0 of 1."""

    def __init__(self, device: str = "auto") -> None:
        """`device`: auto (CUDA when there is one), cpu, cuda. Raises BadInput for a device that is not there."""
        module = torch_import.torch()
        self._torch = module
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if device == "auto":
            device = "cuda" if module.cuda.is_available() else "cpu"
        if device not in ("cpu", "cuda"):
            raise BadInput(f"device {device!r} is none of auto, cpu, cuda")
        if device == "cuda":
            if not module.cuda.is_available():
                raise BadInput("there is no CUDA device here; use --device cpu")
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
            module.cuda.set_device(device)
        self.device: torch.device = module.device(device)

    @property
    def first(self) -> bool:
        """Whether this process writes the record."""
        return self.rank == 0

    def __enter__(self) -> Processes:
        if self.world > 1 and not self._torch.distributed.is_initialized():
            self._torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(self, *_: object) -> None:
        if self.world > 1:
            self._torch.distributed.destroy_process_group()

    def shared(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network as the loss calls it: gradients are averaged over all processes."""
        if self.world == 1:
            return network
        on = [self.device.index] if self.device.type == "cuda" else None
        return self._torch.nn.parallel.DistributedDataParallel(network, device_ids=on)

    def told(self, value: Any) -> Any:
        """What the first process says, in every process."""
        if self.world == 1:
            return value
        box = [value]
        self._torch.distributed.broadcast_object_list(box, 0, device=self.device)
        return box[0]
