"""Non-maximum suppression, and torchvision's detectors made to run where its compiled operators do not load.

torchvision's wheels on package registries are built for CUDA; beside a CPU-only torch
(`embeddings/embedders/torch_import.py`)
its own `nms` raises, and its `roi_align` in Python is compiled at the first call, which takes a minute and a C++
compiler. `prepare` puts ours in the one's place, and the same Python, uncompiled, in the other's. Where the compiled
operators load, nothing is changed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from embeddings.embedders import torch_import
from lake.regions.boxes import suppress

if TYPE_CHECKING:
    import torch


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Places of the boxes (n, 4; left, top, right, bottom) that stay, the highest score first, int64.

    A box goes when it overlaps one that stays, and has a higher score, by more than `iou_threshold`.
    """
    torch = torch_import.torch()
    corners, ranking = (tensor.detach().float().cpu().numpy() for tensor in (boxes, scores))
    return torch.from_numpy(suppress(corners, ranking, iou_threshold)).to(scores.device)


def prepare() -> Any:
    """torchvision, able to suppress and to align. May be called again."""
    torchvision: Any = torch_import.torchvision()
    if not torchvision.extension._has_ops():
        torchvision.ops.boxes.nms = nms
        aligning: Any = sys.modules["torchvision.ops.roi_align"]
        aligning._roi_align = getattr(aligning._roi_align, "__wrapped__", aligning._roi_align)
    return torchvision
