"""Weights of networks: reads checkpoints safely, identifies weights, and stores them in the lake.

The project writes safetensors only. Its only `torch.load` is in `read`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, CouldNot

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from lake.storage.store import Lake

    State = Mapping[str, torch.Tensor]


def read(path: Path, *, sha256: str | None = None, trust_sha256: str | None = None) -> State:
    """The tensors of a checkpoint by name.

    A safetensors file can contain nothing but tensors. A `.pth`, `.pt` or `.bin` is a pickle: its SHA-256 must be
    that of the published file, `sha256`, or the one that the user trusts, `trust_sha256`; and even then only tensors
    are loaded (`weights_only=True`). Raises BadInput for any other file.
    """
    from embeddings.embedders.torch_import import torch

    if not path.is_file():
        raise BadInput(f"no weights file {path}")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: State = load_file(path)
            return tensors
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{path} is not a readable safetensors file: {error}") from error
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise BadInput(f"{path}: weights come as .safetensors, or as .pth / .pt / .bin with a known SHA-256")
    digest = file_sha256(path)
    trusted = trust_sha256 is not None and trust_sha256.lower() == digest
    if trust_sha256 is not None and not trusted:
        raise BadInput(f"{path} has SHA-256 {digest}, not {trust_sha256}: it is not the file you trust")
    if not trusted and digest != sha256:
        raise BadInput(
            f"{path} is not the published file (SHA-256 {digest}). A .pth can contain code: if you trust its source, "
            f"pass --trust-sha256 {digest}, or convert it to safetensors"
        )
    try:
        loaded = torch().load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many kinds
        raise BadInput(f"{path} holds more than tensors or is damaged: {str(error).splitlines()[0]}") from error
    return _state_dict(loaded, path)


def load_into(module: Any, state: State, path_or_name: str) -> None:
    """Loads every tensor into the module. Raises BadInput if tensors are missing, unknown or of another shape."""
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own]
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    if missing or extra or wrong:
        parts = [f"{len(names)} {problem} ({names[0]} ...)" for problem, names in
                 (("missing", missing), ("unknown", extra), ("of another shape", wrong)) if names]  # fmt: skip
        raise BadInput(f"the weights in {path_or_name} do not fit this network: tensors {', '.join(parts)}")
    module.load_state_dict(dict(state), strict=False)


def fingerprint(module: Any) -> str:
    """SHA-256 over the module's tensors in the order of their names: the same in any file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith("num_batches_tracked"):  # a counter of training steps, used by nothing
            continue
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored(lake: Lake, sha256: str | None) -> Path | None:
    """The lake's own copy of these weights, or None."""
    path = _path(lake, sha256) if sha256 and "://" not in lake.uri else None
    return path if path is not None and path.is_file() else None


def store(lake: Lake, module: Any, sha256: str) -> Path:
    """Saves the weights beside the lake's tables, so that later searches need no --weights; returns the file."""
    from safetensors.torch import save_file

    if "://" in lake.uri:
        raise CouldNot("weights from --weights can be stored only in a lake on a local disk")
    path = _path(lake, sha256)
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}, partial)
        partial.rename(path)
    return path


def _path(lake: Lake, sha256: str) -> Path:
    return Path(lake.uri, "weights", f"{sha256}.safetensors")


def _state_dict(loaded: Any, path: Path) -> State:
    """The state_dict of a checkpoint, unwrapped."""
    from embeddings.embedders.torch_import import torch

    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, torch().Tensor) for v in loaded.values()):
        raise BadInput(f"{path} holds no state_dict")
    return {k.removeprefix("module."): v for k, v in loaded.items()}
