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


def write(path: Path, tensors: Mapping[str, torch.Tensor], said: Mapping[str, Any]) -> None:
    """A safetensors file with JSON in its header, whole or not at all."""
    from safetensors.torch import save

    # Copies, since two names may share memory and a slice of a tensor has more than it shows.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    half = path.with_suffix(f".{os.getpid()}.part")
    try:
        with half.open("wb") as file:
            file.write(save(plain, {"lakeloop": json.dumps(said)}))
            file.flush()
            os.fsync(file.fileno())
        half.rename(path)
        sync_folder(path.parent)
    finally:
        half.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the JSON of a file of ours. Raises BadInput."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            said = json.loads((file.metadata() or {})["lakeloop"])
            return {name: file.get_tensor(name) for name in file.keys()}, said  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BadInput(f"{path} is missing, damaged, or not lakeloop's: {error}") from error
