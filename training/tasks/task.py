"""What a task is to the trainer: how its network is made, fed, scored, and asked.

`training/fit/training_loop.py` runs one loop for every task and knows nothing of boxes or classes; `classification.py`,
`segmentation.py` and `detection.py` know nothing of lakes, epochs or files. This module is imported by the decoding
workers, too: numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    import torch


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), np.float32)


def _no_classes() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Target:
    """What an image is, by the index of a class in the model's `classes`.

    `label`: classification; None for the other tasks. `boxes` float32 (n, 4): left, top, right, bottom in pixels of
    the image it stands beside, with `box_classes` int64 (n,). `mask` uint8 (height, width): 0 is background, i + 1 is
    class i, 255 is not judged; None without masks.
    """

    label: int | None = None
    boxes: np.ndarray = field(default_factory=_no_boxes)
    box_classes: np.ndarray = field(default_factory=_no_classes)
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Sample:
    """One image as a network gets it. `image` uint8 (height, width, 3), RGB; `weight` multiplies its loss.

    `size`: (width, height) of the upright original in pixels; `view`: the part of the original that `image` shows
    (left, top, right, bottom), which may reach beyond it. Both serve to give boxes and masks back in the original's
    pixels: x_original = left + x / image.shape[1] * (right - left).
    """

    image_id: str
    image: np.ndarray
    target: Target = Target()
    weight: float = 1.0
    size: tuple[int, int] = (0, 0)
    view: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Batch:
    """Tensors of one step. `images` uint8 (n, 3, height, width); networks normalise themselves.

    `targets`: what the task's loss wants, a tensor, or a list or mapping of tensors; `weights` float32 (n,).
    """

    image_ids: tuple[str, ...]
    images: torch.Tensor
    targets: Any
    weights: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            targets=_moved(self.targets, device),
            weights=self.weights.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Prediction:
    """A model's answer to one image, as the tables predictions and scores have it.

    `scores`: (label, score) pairs, the highest first. `boxes` and `masks`: dicts with the fields of
    `lake.schema.BOXES` and `MASKS`, in pixels of the upright original.
    """

    image_id: str
    label: str | None = None
    confidence: float | None = None
    scores: Sequence[tuple[str, float]] = ()
    boxes: Sequence[dict[str, Any]] = ()
    masks: Sequence[dict[str, Any]] = ()

    def row(self) -> dict[str, Any]:
        """The columns it fills in a row of `scores`."""
        return {
            "image_id": self.image_id,
            "label": self.label,
            "confidence": self.confidence,
            "scores": [{"label": label, "score": score} for label, score in self.scores],
            "boxes": list(self.boxes),
            "masks": list(self.masks),
        }


class Task(Protocol):
    """One kind of question. Registered by name in `task()` below.

    `metric`: the metric of `judge` that picks the best epoch unless the recipe names another; higher is better.
    `geometry`: how a whole image becomes a square outside of training: "crop" (shortest side, then the centre) or
    "squash" (both sides, nothing is lost).
    """

    name: str
    metric: str
    geometry: Literal["crop", "squash"]

    def network(
        self,
        architecture: str,
        classes: Sequence[str],
        *,
        pretrained: bool = True,
        weights: Path | None = None,
        trust_sha256: str | None = None,
        dropout: float = 0.0,
    ) -> torch.nn.Module:
        """A network that takes uint8 images (n, 3, height, width) and normalises them itself.

        Parameters whose name begins with "backbone." are the backbone: what `freeze` freezes and `backbone_rate` and
        `layer_decay` slow down; all others are the head. Raises BadInput for an unknown architecture, with the
        nearest ones.
        """

    def side(self, architecture: str) -> int:
        """Pixels of the square that this architecture is fed with when the recipe does not say."""

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Collates prepared samples, all of one size. Runs in the training process."""

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The scalar to go down: the mean over the batch, each image times its weight. `network` is in training mode
        and may be wrapped (DistributedDataParallel): call it, touch no attribute."""

    def predictions(
        self, network: torch.nn.Module, samples: Sequence[Sample], classes: Sequence[str]
    ) -> list[Prediction]:
        """One answer a sample, in order, in the original's pixels. `network` is in evaluation mode, no gradients."""

    def evaluate(
        self, samples: Sequence[Sample], answers: Sequence[Prediction], classes: Sequence[str]
    ) -> dict[str, float]:
        """Metrics by name, of answers beside the samples' targets; every epoch's validation. Higher is better, except
        `loss` and `ece`. Masks and boxes of the targets are in the prepared image's pixels."""

    def calibrate(self, network: torch.nn.Module, samples: Sequence[Sample]) -> dict[str, float]:
        """Makes confidences mean what they say on validation images, within the network; what was found, for the
        record (e.g. {"temperature": 1.3}). A task without calibration gives {}."""


def collated(samples: Sequence[Sample], targets: Any) -> Batch:
    """The samples' images, ids and weights beside their targets, as every task has them."""
    from embeddings.embedders import torch_import

    torch = torch_import.torch()
    # (n, h, w, 3) in memory seen as (n, 3, h, w) is what channels_last means: nothing is copied.
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    weights = torch.tensor([s.weight for s in samples], dtype=torch.float32)
    return Batch(tuple(s.image_id for s in samples), images, targets, weights)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {k: _moved(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(v, device) for v in value)
    return value.to(device, non_blocking=True) if hasattr(value, "to") else value
