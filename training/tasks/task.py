"""The interface of a task: how its network is built, fed, trained and evaluated, and how it predicts.

`training/fit/training_loop.py` has one loop for every task and knows no boxes or classes; `classification.py`,
`segmentation.py` and `detection.py` know no lakes, epochs or files. The decoding workers import this module: numpy
only.
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
    """The ground truth of an image, with classes as indices in the model's `classes`.

    `label`: classification; None for other tasks, -1 for a class that the model does not have. `boxes` float32 (n, 4):
    left, top, right, bottom in pixels of the prepared image; `box_classes` int64 (n,). `mask` uint8 (height, width): 0
    is background, i + 1 is class i, 255 is ignored; None without masks. `crowds` float32 (m, 4) and `crowd_classes`
    int64 (m,): crowd regions like boxes, for evaluation; class -1 is every class. In training, their pixels are grey.
    """

    label: int | None = None
    boxes: np.ndarray = field(default_factory=_no_boxes)
    box_classes: np.ndarray = field(default_factory=_no_classes)
    mask: np.ndarray | None = None
    crowds: np.ndarray = field(default_factory=_no_boxes)
    crowd_classes: np.ndarray = field(default_factory=_no_classes)


@dataclass(frozen=True)
class Sample:
    """A prepared image. `image` uint8 (height, width, 3), RGB. `weight` multiplies its loss.

    `size`: (width, height) of the upright original in pixels. `view`: the part of the original that `image` shows
    (left, top, right, bottom); it may reach beyond the original. They convert boxes and masks to the original's pixels:
    x_original = left + x / image.shape[1] * (right - left).
    """

    image_id: str
    image: np.ndarray
    target: Target = Target()
    weight: float = 1.0
    size: tuple[int, int] = (0, 0)
    view: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Batch:
    """The tensors of one step. `images` uint8 (n, 3, height, width); the networks normalise them.

    `targets`: what the task's loss takes: a tensor, or a list or mapping of tensors. `weights` float32 (n,).
    """

    image_ids: tuple[str, ...]
    images: torch.Tensor
    targets: Any
    weights: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """This batch on a device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            targets=_moved(self.targets, device),
            weights=self.weights.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one image, with the fields of the tables predictions and scores.

    `scores`: (label, score) pairs, the highest first. `boxes` and `masks`: dicts with the fields of `schema.BOXES` and
    `schema.MASKS`, in pixels of the upright original.
    """

    image_id: str
    label: str | None = None
    confidence: float | None = None
    scores: Sequence[tuple[str, float]] = ()
    boxes: Sequence[dict[str, Any]] = ()
    masks: Sequence[dict[str, Any]] = ()

    def row(self) -> dict[str, Any]:
        """Its columns of a row in the table scores."""
        return {
            "image_id": self.image_id,
            "label": self.label,
            "confidence": self.confidence,
            "scores": [{"label": label, "score": score} for label, score in self.scores],
            "boxes": list(self.boxes),
            "masks": list(self.masks),
        }


class Task(Protocol):
    """A kind of task. `task_registry.get` has tasks by name.

    `metric`: the metric of `evaluate` that selects the best epoch unless the recipe names another; higher is better.
    `geometry`: how a whole image becomes a square outside of training: "crop" (the centre of the shortest side) or
    "squash" (both sides resized, nothing is lost).
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
        """A network that takes uint8 images (n, 3, height, width) and normalises them.

        Parameters whose name begins with "backbone." are the backbone, to which `freeze`, `backbone_rate` and
        `layer_decay` apply; all others are the head. Raises BadInput with the nearest names for an unknown
        architecture.
        """

    def side(self, architecture: str) -> int:
        """The side in pixels of its square images, unless the recipe sets `size`."""

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Collates samples of one size. Runs in the training process."""

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The loss to minimise, a scalar: the mean over the batch of each image's loss times its weight.

        `network` is in training mode and may be wrapped (DistributedDataParallel): only call it.
        """

    def predictions(
        self, network: torch.nn.Module, samples: Sequence[Sample], classes: Sequence[str]
    ) -> list[Prediction]:
        """A prediction for each sample, in order, in the original's pixels. `network` is in evaluation mode."""

    def evaluate(
        self, samples: Sequence[Sample], predictions: Sequence[Prediction], classes: Sequence[str]
    ) -> dict[str, float]:
        """Metrics by name, of predictions and the samples' targets, for validation after each epoch.

        Higher is better, except for `loss` and `ece`. Masks and boxes of the targets are in the prepared image's
        pixels.
        """

    def calibrate(self, network: torch.nn.Module, samples: Sequence[Sample]) -> dict[str, float]:
        """Calibrates the network's confidences on validation images. Returns the parameters for the record, for example
        {"temperature": 1.3}; {} for a task without calibration."""


def collate(samples: Sequence[Sample], targets: Any) -> Batch:
    """A batch of the samples' images, ids and weights with their targets."""
    from embeddings.embedders import torch_import

    torch = torch_import.torch()
    # A view (n, 3, h, w) of memory (n, h, w, 3) is channels_last: nothing is copied.
    images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
    weights = torch.tensor([s.weight for s in samples], dtype=torch.float32)
    return Batch(tuple(s.image_id for s in samples), images, targets, weights)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {k: _moved(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(v, device) for v in value)
    return value.to(device, non_blocking=True) if hasattr(value, "to") else value
