"""Runs a network on batches of prepared images: torch on CPU or CUDA, or OpenVINO on CPU.

Input: uint8 (n, side, side, 3). Output: float32 (n, dim), length 1. The network's first step is normalisation, so that
uint8 is sent between processes. This module knows no names, files or lakes.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from embeddings.embedders import torch_import
from lake.errors import BadInput
from lake.extras import require

if TYPE_CHECKING:
    from embeddings.embedders.specs import Preprocessing

EngineName = Literal["auto", "torch", "openvino"]
# Images per forward pass: larger batches are no faster on CPU, and fewer fill a GPU.
CPU_BATCH = 16
CUDA_BATCH = 256
# OpenVINO takes 4 s to convert a network and then saves more than 10 ms an image.
OPENVINO_PAYS_FROM = 400


class Engine(Protocol):
    name: str
    batch: int

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


def make(features: Any, preprocessing: Preprocessing, choice: EngineName = "auto", images: int = 0) -> Engine:
    """The engine `choice` (LAKELOOP_ENGINE overrides `auto`); `auto` is the fastest for this number of images.

    Raises MissingExtra if it is not installed, BadInput for an unknown name.
    """
    choice = os.environ.get("LAKELOOP_ENGINE", choice) if choice == "auto" else choice  # type: ignore[assignment]
    torch = torch_import.torch()
    network = _normalised(features, preprocessing)
    if choice not in ("auto", "torch", "openvino"):
        raise BadInput(f"engine is {choice!r}; it must be one of auto, torch, openvino")
    openvino_pays = images >= OPENVINO_PAYS_FROM and _has_openvino() and not torch.cuda.is_available()
    if choice == "openvino" or (choice == "auto" and openvino_pays):
        return OpenVinoEngine(network, preprocessing.crop)
    return TorchEngine(network)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The rows scaled to length 1; a zero or non-finite row becomes NaN, and callers drop it."""
    vectors = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isfinite(lengths) & (lengths > 0), vectors / lengths, np.nan).astype(np.float32)


class TorchEngine:
    """torch: channels_last on CPU, autocast to bfloat16 on CUDA."""

    name = "torch"

    def __init__(self, network: Any) -> None:
        torch = torch_import.torch()
        self._torch = torch
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch = CUDA_BATCH if self._device.type == "cuda" else CPU_BATCH
        if self._device.type == "cpu":
            torch.set_num_threads(_cores())
        self._network = network.to(self._device, memory_format=torch.channels_last)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        torch = self._torch
        # (n, h, w, 3) in memory seen as (n, 3, h, w) is what channels_last means: nothing is copied.
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        cuda = self._device.type == "cuda"
        with torch.inference_mode(), torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=cuda):
            return unit(self._network(batch).float().cpu().numpy())


class OpenVinoEngine:
    """OpenVINO in single precision: the same numbers as torch to 1e-4, about twice as fast on CPU."""

    name = "openvino"
    batch = CPU_BATCH

    def __init__(self, network: Any, side: int) -> None:
        torch = torch_import.torch()
        # OpenVINO's converter sends telemetry from a forked process, unless this module is absent.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        openvino = require("openvino", "openvino", "cpu")
        example = torch.zeros((2, 3, side, side), dtype=torch.uint8)
        with torch.inference_mode(), warnings.catch_warnings():
            # OpenVINO traces the network, which torch has deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            model = openvino.convert_model(network, example_input=example, input=[([-1, 3, side, side], np.uint8)])
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": _cores(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._run = openvino.Core().compile_model(model, "CPU", settings)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return unit(self._run(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))[0])


def _normalised(features: Any, preprocessing: Preprocessing) -> Any:
    torch = torch_import.torch()

    class Normalised(torch.nn.Module):  # type: ignore[misc,name-defined]
        """(value / 255 - mean) / std, then the network."""

        def __init__(self) -> None:
            super().__init__()
            mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
            self.register_buffer("scale", (1.0 / (255.0 * std)).view(1, 3, 1, 1))
            self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))
            self.features = features

        def forward(self, images: Any) -> Any:
            return self.features(images.float() * self.scale + self.shift)

    return Normalised().eval()


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _cores() -> int:
    return len(os.sched_getaffinity(0))
