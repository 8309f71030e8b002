"""Safetensors files with JSON in their header: a trained model, or a checkpoint of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.spool.segments import sync_folder

if TYPE_CHECKING:
    import torch


def write(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors, and JSON in the header, durably: the whole file or nothing."""
    from safetensors.torch import save

    # Copies: two names may share memory, and a view keeps the whole tensor.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(save(plain, {"lakeloop": json.dumps(header)}))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the JSON. Raises BadInput for a file that `write` did not write."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["lakeloop"])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BadInput(f"{path} is missing, damaged, or not a file of lakeloop: {error}") from error
