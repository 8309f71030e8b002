"""Makes torchvision's detectors run where its compiled operators do not load.

torchvision's wheels on package registries are built for CUDA. Next to a CPU-only torch
(`embeddings/embedders/torch_import.py`) its `nms` raises, and its `roi_align` in Python is compiled at the first call,
which takes a minute and a C++ compiler. `prepare` replaces the first with `lake.regions.boxes.suppress`, and the second
with the same Python code, not compiled. Where the compiled operators load, nothing changes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from embeddings.embedders import torch_import
from lake.regions.boxes import suppress

if TYPE_CHECKING:
    import torch


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Non-maximum suppression: int64 indices of the boxes (n, 4; left, top, right, bottom) to keep, best score first.

    A box is dropped if it overlaps a kept box with a higher score by an IoU above `iou_threshold`.
    """
    torch = torch_import.torch()
    corners, ranking = (tensor.detach().float().cpu().numpy() for tensor in (boxes, scores))
    return torch.from_numpy(suppress(corners, ranking, iou_threshold)).to(scores.device)


def prepare() -> Any:
    """torchvision with an `nms` and a `roi_align` that run. May be called again."""
    torchvision: Any = torch_import.torchvision()
    if not torchvision.extension._has_ops():
        torchvision.ops.boxes.nms = nms
        module: Any = sys.modules["torchvision.ops.roi_align"]
        module._roi_align = getattr(module._roi_align, "__wrapped__", module._roi_align)
    return torchvision
