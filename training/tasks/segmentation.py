"""Semantic segmentation: a class for every pixel, background among them.

Networks: `unet-lite0` and `unet-small` (`training/networks/compact_networks.py`), and torchvision's DeepLabV3, FCN
and LR-ASPP (`training/networks/torchvision_networks.py`). Output 0 is background, output i + 1 class i, as in VOC.

An answer has one mask a class that occurs, its score the mean probability over the mask's pixels; background has none.
`label` and `confidence` are of the mask with the highest score.
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
from training.tasks.task import Batch, Prediction, Sample, collated

if TYPE_CHECKING:
    import torch

# Name -> the side it is made for, in pixels.
COMPACT = {"unet-lite0": 128, "unet-small": 128}
ARCHITECTURES = (*COMPACT, *(n for n, facts in torchvision_networks.NETWORKS.items() if facts.task == "segmentation"))
# Of the second head that some networks have in training (torchvision's reference).
AUXILIARY = 0.4
# Images a forward pass when nothing is learned.
CHUNK = 8


class Segmentation:
    """A `training.task.Task`. `dice`: weight of the soft Dice loss beside the cross-entropy, 0 or more."""

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
        """uint8 (n, 3, height, width) -> {"out": logits (n, 1 + classes, height, width)}, "aux" beside it in some.

        Raises BadInput for an unknown architecture, no classes, or weights that do not fit.
        """
        _check(architecture)
        if not classes:
            raise BadInput("the labels name no class: segmentation needs masks with a label")
        how: dict[str, Any] = {"pretrained": pretrained, "file": weights, "trust_sha256": trust_sha256}
        if architecture in COMPACT:
            torch_import.torch()
            from training.networks import compact_networks

            return compact_networks.build(architecture, len(classes) + 1, dropout=dropout, **how)
        return torchvision_networks.build(architecture, len(classes) + 1, dropout=dropout, **how)

    def side(self, architecture: str) -> int:
        _check(architecture)
        return COMPACT[architecture] if architecture in COMPACT else torchvision_networks.NETWORKS[architecture].side

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Targets: uint8 (n, height, width), 255 where nothing is known; all of it for a sample without a mask."""
        torch = torch_import.torch()
        known = [np.full(s.image.shape[:2], IGNORED, np.uint8) if s.target.mask is None else s.target.mask
                 for s in samples]  # fmt: skip
        return collated(samples, torch.from_numpy(np.stack(known)))

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy, the mean over an image's judged pixels, and Dice over the batch."""
        found = network(batch.images)
        total = self._loss(found["out"].float(), batch)
        if "aux" in found:
            total = total + AUXILIARY * self._loss(found["aux"].float(), batch)
        return total

    def _loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        torch = torch_import.torch()
        truth = batch.targets.long()
        each = torch.nn.functional.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="none")
        judged = (truth != IGNORED).float()
        pixels = judged.sum(dim=(1, 2)).clamp(min=1.0)
        total = (each.sum(dim=(1, 2)) / pixels * batch.weights).mean()
        if not self.dice:
            return total
        share = judged * batch.weights[:, None, None]
        chances = logits.softmax(dim=1)
        # Of the true class at each pixel: no one-hot copy of the truth is needed.
        own = chances.gather(1, truth.clamp(max=logits.shape[1] - 1)[:, None])[:, 0] * share
        kinds = truth.clamp(max=logits.shape[1] - 1).flatten()
        empty = logits.new_zeros(logits.shape[1])
        both = empty.scatter_add(0, kinds, own.flatten())
        there = empty.scatter_add(0, kinds, share.flatten())
        said = (chances * share[:, None]).sum(dim=(0, 2, 3))
        dice = 1.0 - (2.0 * both + 1.0) / (said + there + 1.0)
        return total + self.dice * dice.mean()

    def predictions(
        self, network: torch.nn.Module, samples: Sequence[Sample], classes: Sequence[str]
    ) -> list[Prediction]:
        torch = torch_import.torch()
        device = next(network.parameters()).device
        found = []
        with torch.no_grad():
            for start in range(0, len(samples), CHUNK):
                some = samples[start : start + CHUNK]
                chances = network(self.batch(some).images.to(device))["out"].float().softmax(dim=1).cpu()
                found += [_answer(s, c.numpy(), classes) for s, c in zip(some, chances, strict=True)]
        return found

    def evaluate(
        self, samples: Sequence[Sample], answers: Sequence[Prediction], classes: Sequence[str]
    ) -> dict[str, float]:
        """miou, background counted, and iou of each class as `iou:CLASS`: in the squares' pixels, 0 to 1."""
        pairs = [(s, a) for s, a in zip(samples, answers, strict=True) if s.target.mask is not None]
        said = [_in_square(a, s, classes) for s, a in pairs]
        overlaps = segmentation_metrics.compare(
            [s.target.mask for s, _ in pairs if s.target.mask is not None], said, classes
        )
        return {"miou": overlaps.miou()} | {f"iou:{name}": value for name, value in overlaps.by_class().items()}

    def calibrate(self, network: torch.nn.Module, samples: Sequence[Sample]) -> dict[str, float]:
        """Nothing is calibrated."""
        return {}


def _check(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(architecture, ARCHITECTURES, 3, 0.4) or ARCHITECTURES
        raise BadInput(f"no segmentation network {architecture!r}; did you mean {', '.join(near)}?")


def _answer(sample: Sample, chances: np.ndarray, classes: Sequence[str]) -> Prediction:
    """`chances` (1 + classes, height, width) of the square, as masks of the original. Outside the view: background."""
    width, height = sample.size
    left, top, right, bottom = (round(v) for v in sample.view)
    best = np.full((bottom - top, right - left), -1.0, np.float32)
    number = np.zeros(best.shape, np.int64)
    for k, plane in enumerate(chances):  # a class at a time: all of them at the size of a photograph are gigabytes
        large = np.asarray(Image.fromarray(plane).resize((right - left, bottom - top), Image.Resampling.BILINEAR))
        better = large > best
        best[better], number[better] = large[better], k
    found = []
    for k in np.unique(number):
        if k:
            mask = np.zeros((height, width), bool)
            inside = number == k
            mask[top:bottom, left:right] = inside
            score = min(1.0, float(best[inside].mean(dtype=np.float64)))
            found.append({"label": classes[k - 1], "score": score, "height": height, "width": width,
                          "counts": masks.encode(mask)})  # fmt: skip
    surest = max(found, key=lambda m: m["score"], default=None)
    label, confidence = (surest["label"], surest["score"]) if surest else (None, None)
    return Prediction(sample.image_id, label, confidence, masks=found)


def _in_square(answer: Prediction, sample: Sample, classes: Sequence[str]) -> np.ndarray:
    """uint8 (side, side): the answer's masks as the target's mask is, by the nearest pixel."""
    whole = segmentation_metrics.class_map(answer.masks, classes, *sample.size)
    height, width = sample.image.shape[:2]
    return np.asarray(Image.fromarray(whole).resize((width, height), Image.Resampling.NEAREST, box=sample.view))
