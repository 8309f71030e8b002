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

if TYPE_CHECKING:
    import torch

# Rows of the table of overlaps that are held at once: 1,024 x 10,000 boxes are 40 MB.
_ROWS = 1024


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Places of the boxes (n, 4; left, top, right, bottom) that stay, the highest score first, int64.

    A box goes when it overlaps one that stays, and has a higher score, by more than `iou_threshold`.
    """
    torch = torch_import.torch()
    order = scores.argsort(descending=True, stable=True)
    sorted_boxes = boxes[order].detach().float().cpu()
    gone = torch.zeros(len(order), dtype=torch.bool)
    area = (sorted_boxes[:, 2:] - sorted_boxes[:, :2]).prod(dim=1)
    for start in range(0, len(order), _ROWS):
        some = sorted_boxes[start : start + _ROWS]
        rest = sorted_boxes[start:]
        low = torch.maximum(some[:, None, :2], rest[None, :, :2])
        high = torch.minimum(some[:, None, 2:], rest[None, :, 2:])
        both = (high - low).clamp(min=0).prod(dim=2)
        either = area[start : start + _ROWS, None] + area[None, start:] - both
        overlaps = (both > iou_threshold * either).numpy()
        left = gone[start:].numpy()
        for row in range(len(some)):
            if not left[row]:
                left[row + 1 :] |= overlaps[row, row + 1 :]
    return order[~gone.to(order.device)]


def prepare() -> Any:
    """torchvision, able to suppress and to align. May be called again."""
    torchvision: Any = torch_import.torchvision()
    if not torchvision.extension._has_ops():
        torchvision.ops.boxes.nms = nms
        aligning: Any = sys.modules["torchvision.ops.roi_align"]
        aligning._roi_align = getattr(aligning._roi_align, "__wrapped__", aligning._roi_align)
    return torchvision
