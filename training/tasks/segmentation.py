"""Semantic segmentation: a class or background for every pixel.

Networks: `unet-lite0` and `unet-small` (`training/networks/compact_networks.py`), and torchvision's DeepLabV3, FCN
and LR-ASPP (`training/networks/torchvision_networks.py`). Output 0 is background, output i + 1 class i, as in VOC.

A prediction has one mask for each class that occurs; its score is the mean probability over the mask's pixels.
Background has no mask. `label` and `confidence` are those of the mask with the highest score.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from embeddings.embedders import torch_import
from lake.errors import BadInput
from lake.regions import masks
from training.metrics import segmentation_metrics
from training.metrics.segmentation_metrics import IGNORED
from training.networks import torchvision_networks
from training.tasks.task import Batch, Prediction, Sample, collate

if TYPE_CHECKING:
    import torch

# Name -> the side of its images, in pixels.
COMPACT = {"unet-lite0": 128, "unet-small": 128}
ARCHITECTURES = (*COMPACT, *(n for n, facts in torchvision_networks.NETWORKS.items() if facts.task == "segmentation"))
# The weight of the loss of the second head that some networks have in training (torchvision's reference).
AUXILIARY = 0.4
# Images in a forward pass without training.
CHUNK = 8


class Segmentation:
    """A `Task`. `dice`: the weight of the soft Dice loss next to the cross-entropy, 0 or more."""

    name = "segmentation"
    metric = "miou"
    geometry: Literal["crop", "squash"] = "squash"

    def __init__(self, dice: float = 1.0) -> None:
        self.dice = dice

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
        """uint8 (n, 3, height, width) -> {"out": logits (n, 1 + classes, height, width)}, some also with "aux".

        Raises BadInput for an unknown architecture, no classes, or weights that do not fit.
        """
        _check(architecture)
        if not classes:
            raise BadInput("the labels have no class: segmentation needs masks with a label")
        options: dict[str, Any] = {"pretrained": pretrained, "file": weights, "trust_sha256": trust_sha256}
        if architecture in COMPACT:
            torch_import.torch()
            from training.networks import compact_networks

            return compact_networks.build(architecture, len(classes) + 1, dropout=dropout, **options)
        return torchvision_networks.build(architecture, len(classes) + 1, dropout=dropout, **options)

    def side(self, architecture: str) -> int:
        _check(architecture)
        return COMPACT[architecture] if architecture in COMPACT else torchvision_networks.NETWORKS[architecture].side

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Targets: uint8 (n, height, width); IGNORED everywhere for a sample without a mask."""
        torch = torch_import.torch()
        targets = [np.full(s.image.shape[:2], IGNORED, np.uint8) if s.target.mask is None else s.target.mask
                   for s in samples]  # fmt: skip
        return collate(samples, torch.from_numpy(np.stack(targets)))

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy, the mean over the pixels of an image that are not ignored, and Dice over the batch."""
        out = network(batch.images)
        total = self._loss(out["out"].float(), batch)
        if "aux" in out:
            total = total + AUXILIARY * self._loss(out["aux"].float(), batch)
        return total

    def _loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        torch = torch_import.torch()
        targets = batch.targets.long()
        losses = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        counted = (targets != IGNORED).float()
        pixels = counted.sum(dim=(1, 2)).clamp(min=1.0)
        total = (losses.sum(dim=(1, 2)) / pixels * batch.weights).mean()
        if not self.dice:
            return total
        weights = counted * batch.weights[:, None, None]
        probabilities = logits.softmax(dim=1)
        # The probability of the true class at each pixel: no one-hot copy of the target is needed.
        classes = targets.clamp(max=logits.shape[1] - 1)
        true = probabilities.gather(1, classes[:, None])[:, 0] * weights
        zeros = logits.new_zeros(logits.shape[1])
        intersection = zeros.scatter_add(0, classes.flatten(), true.flatten())
        ground_truth = zeros.scatter_add(0, classes.flatten(), weights.flatten())
        predicted = (probabilities * weights[:, None]).sum(dim=(0, 2, 3))
        dice = 1.0 - (2.0 * intersection + 1.0) / (predicted + ground_truth + 1.0)
        return total + self.dice * dice.mean()

    def predictions(
        self, network: torch.nn.Module, samples: Sequence[Sample], classes: Sequence[str]
    ) -> list[Prediction]:
        torch = torch_import.torch()
        device = next(network.parameters()).device
        predictions = []
        with torch.no_grad():
            for start in range(0, len(samples), CHUNK):
                chunk = samples[start : start + CHUNK]
                probabilities = network(self.batch(chunk).images.to(device))["out"].float().softmax(dim=1).cpu()
                predictions += [_prediction(s, p.numpy(), classes) for s, p in zip(chunk, probabilities, strict=True)]
        return predictions

    def evaluate(
        self, samples: Sequence[Sample], predictions: Sequence[Prediction], classes: Sequence[str]
    ) -> dict[str, float]:
        """miou, with background, and the IoU of each class as `iou:CLASS`: in the squares' pixels, 0 to 1."""
        masks_and_maps = [
            (sample.target.mask, _in_square(prediction, sample, classes))
            for sample, prediction in zip(samples, predictions, strict=True)
            if sample.target.mask is not None
        ]
        overlaps = segmentation_metrics.compare(
            [mask for mask, _ in masks_and_maps], [predicted for _, predicted in masks_and_maps], classes
        )
        return {"miou": overlaps.miou()} | {f"iou:{name}": value for name, value in overlaps.by_class().items()}

    def calibrate(self, network: torch.nn.Module, samples: Sequence[Sample]) -> dict[str, float]:
        """Nothing is calibrated."""
        return {}


def _check(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        nearest = difflib.get_close_matches(architecture, ARCHITECTURES, 3, 0.4) or ARCHITECTURES
        raise BadInput(f"no segmentation network {architecture!r}; did you mean {', '.join(nearest)}?")


def _prediction(sample: Sample, probabilities: np.ndarray, classes: Sequence[str]) -> Prediction:
    """Masks of the original from `probabilities` (1 + classes, height, width) of the square.

    Pixels outside of the view are background.
    """
    width, height = sample.size
    left, top, right, bottom = (round(v) for v in sample.view)
    best = np.full((bottom - top, right - left), -1.0, np.float32)
    number = np.zeros(best.shape, np.int64)
    for k, plane in enumerate(probabilities):  # one class at a time: all classes of a photograph would be gigabytes
        large = np.asarray(Image.fromarray(plane).resize((right - left, bottom - top), Image.Resampling.BILINEAR))
        better = large > best
        best[better], number[better] = large[better], k
    rows = []
    for k in np.unique(number):
        if k:
            mask = np.zeros((height, width), bool)
            inside = number == k
            mask[top:bottom, left:right] = inside
            score = min(1.0, float(best[inside].mean(dtype=np.float64)))
            rows.append({"label": classes[k - 1], "score": score, "height": height, "width": width,
                         "counts": masks.encode(mask)})  # fmt: skip
    top_row = max(rows, key=lambda row: row["score"], default=None)
    label, confidence = (top_row["label"], top_row["score"]) if top_row else (None, None)
    return Prediction(sample.image_id, label, confidence, masks=rows)


def _in_square(prediction: Prediction, sample: Sample, classes: Sequence[str]) -> np.ndarray:
    """uint8 (side, side): the prediction's masks as a map like the target's mask, by nearest pixel."""
    whole = segmentation_metrics.class_map(prediction.masks, classes, *sample.size)
    height, width = sample.image.shape[:2]
    return np.asarray(Image.fromarray(whole).resize((width, height), Image.Resampling.NEAREST, box=sample.view))
