"""Object detection: a box, a class and a score for every object.

In training, crowd regions are grey (`training/data/augmentation.py`), so they are no background; predictions inside
them are neither correct nor wrong.

Networks: `centernet-lite0` and `centernet-small` (`training/networks/compact_networks.py`), and torchvision's SSD,
RetinaNet and Faster R-CNN (`training/networks/torchvision_networks.py`). Class i of the model is class i of the compact
networks' heat, and label i + 1 of torchvision's, whose label 0 is background.

`label` and `confidence` of a prediction are those of the box with the highest score; without boxes both are None.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embeddings.embedders import torch_import
from lake.errors import BadInput
from training.metrics import detection_metrics
from training.networks import torchvision_networks, torchvision_operators
from training.tasks.task import Batch, Prediction, Sample, collate

if TYPE_CHECKING:
    import torch

# Name -> the side of its images, in pixels.
COMPACT = {"centernet-lite0": 128, "centernet-small": 128}
ARCHITECTURES = (*COMPACT, *(n for n, facts in torchvision_networks.NETWORKS.items() if facts.task == "detection"))
# A prediction keeps boxes from this score on, at most so many: mean average precision needs boxes with low scores, too.
SCORE_FROM = 0.05
MOST_BOXES = 100
# Of two boxes of a class with a larger IoU, the one with the lower score is dropped.
OVERLAP = 0.5
# As shares of an object's size: the deviation of the heat around its centre, and how far from it points learn the box.
_SPREAD, _MIDDLE = 0.1, 0.2
# The weight of the boxes' loss relative to the heat's.
_BOXES = 2.0
# Boxes thinner than this in the square, in pixels, are left out; torchvision refuses empty boxes.
_THINNEST = 1.0
# Images in a forward pass without training.
CHUNK = 8


class Detection:
    """A `Task`."""

    name = "detection"
    metric = "map_50"
    geometry: Literal["crop", "squash"] = "squash"

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
        """A network that takes images uint8 (n, 3, height, width) and, in training, targets as torchvision takes them.

        Raises BadInput for an unknown architecture, no classes, or weights that do not fit.
        """
        _check(architecture)
        if not classes:
            raise BadInput("the labels have no class: detection needs boxes with a label")
        options: dict[str, Any] = {"pretrained": pretrained, "file": weights, "trust_sha256": trust_sha256}
        if architecture in COMPACT:
            torch_import.torch()
            from training.networks import compact_networks

            return compact_networks.build(architecture, len(classes), dropout=dropout, **options)
        return torchvision_networks.build(architecture, len(classes) + 1, dropout=dropout, **options)

    def side(self, architecture: str) -> int:
        _check(architecture)
        return COMPACT[architecture] if architecture in COMPACT else torchvision_networks.NETWORKS[architecture].side

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Targets of each image: boxes float32 (m, 4), corners in the square's pixels; labels int64 (m,) from 1."""
        torch = torch_import.torch()
        targets = []
        for sample in samples:
            boxes = np.asarray(sample.target.boxes, np.float32).reshape(-1, 4)
            usable = (boxes[:, 2:] - boxes[:, :2] >= _THINNEST).all(axis=1)
            labels = np.asarray(sample.target.box_classes, np.int64)[usable] + 1
            targets.append({"boxes": torch.from_numpy(boxes[usable]), "labels": torch.from_numpy(labels)})
        return collate(samples, targets)

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Compact networks: focal loss of the heat and generalised IoU of boxes. torchvision: the sum of its losses.

        torchvision's losses know no weights: raises BadInput if the images of a batch have different weights.
        """
        out = network(batch.images, batch.targets)
        if "heat" in out:
            return _compact_loss(out["heat"].float(), out["distances"].float(), batch)
        if bool((batch.weights != batch.weights[0]).any()):
            raise BadInput("torchvision's detectors cannot weigh images: remove the weights, or use a centernet")
        total: torch.Tensor = sum(out.values()) * batch.weights[0]
        return total

    def predictions(
        self, network: torch.nn.Module, samples: Sequence[Sample], classes: Sequence[str]
    ) -> list[Prediction]:
        torch = torch_import.torch()
        device = next(network.parameters()).device
        predictions: list[Prediction] = []
        with torch.no_grad():
            for start in range(0, len(samples), CHUNK):
                chunk = samples[start : start + CHUNK]
                out = network(self.batch(chunk).images.to(device))
                if isinstance(out, dict):
                    boxes = _peaks(out["heat"].float(), out["distances"].float())
                else:
                    boxes = _torchvision_boxes(out)
                predictions += [_prediction(s, *part, classes) for s, part in zip(chunk, boxes, strict=True)]
        return predictions

    def evaluate(
        self, samples: Sequence[Sample], predictions: Sequence[Prediction], classes: Sequence[str]
    ) -> dict[str, float]:
        """map_50, map and the other means of `AveragePrecisions`, 0 to 1, of boxes in the originals' pixels."""
        truths = [_rows(_in_original(s.target.boxes, s), s.target.box_classes, None, classes) for s in samples]
        crowds = [_rows(_in_original(s.target.crowds, s), s.target.crowd_classes, None, classes) for s in samples]
        return detection_metrics.match(truths, [p.boxes for p in predictions], crowds).average_precisions().means()

    def calibrate(self, network: torch.nn.Module, samples: Sequence[Sample]) -> dict[str, float]:
        """Nothing is calibrated."""
        return {}


def _check(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        nearest = difflib.get_close_matches(architecture, ARCHITECTURES, 3, 0.4) or ARCHITECTURES
        raise BadInput(f"no detector {architecture!r}; did you mean {', '.join(nearest)}?")


# Loss -------------------------------------------------------------------------------------------------------


def _points(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """float (rows * columns, 2): x and y of the middles of the points' squares, in pixels, row by row."""
    from training.networks.compact_networks import POINT_STRIDE

    torch = torch_import.torch()
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return (torch.stack([x, y], dim=2).reshape(-1, 2).float() + 0.5) * POINT_STRIDE


def _compact_loss(heat: torch.Tensor, distances: torch.Tensor, batch: Batch) -> torch.Tensor:
    torch = torch_import.torch()
    count, classes, rows, columns = heat.shape
    points = _points(rows, columns, heat.device)
    image = torch.repeat_interleave(
        torch.arange(count, device=heat.device), torch.tensor([len(t["labels"]) for t in batch.targets]).to(heat.device)
    )
    boxes = torch.cat([t["boxes"] for t in batch.targets])
    labels = torch.cat([t["labels"] for t in batch.targets]) - 1
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    distance = (points[None] - middle[:, None]).abs()  # (objects, points, 2)
    # The point nearest to the middle of an object always belongs to it, however small the object is.
    nearest = torch.zeros(distance.shape[:2], dtype=torch.bool, device=heat.device)
    nearest.scatter_(1, distance.sum(dim=2).argmin(dim=1, keepdim=True), True)
    spread = (size * _SPREAD).clamp(min=2.0)[:, None]
    gaussians = torch.exp(-0.5 * ((distance / spread) ** 2).sum(dim=2)).masked_fill(nearest, 1.0)
    target = torch.zeros(count, classes, rows * columns, device=heat.device)
    for index, gaussian in zip((image * classes + labels).tolist(), gaussians, strict=True):
        plane = target.view(count * classes, -1)[index]
        torch.maximum(plane, gaussian, out=plane)
    weights, objects = batch.weights, max(1, len(boxes))
    # CenterNet's focal loss: heat near the middle costs little.
    logits = heat.flatten(2)
    probability, log = logits.sigmoid(), torch.nn.functional.logsigmoid
    positive = -((1 - probability) ** 2) * log(logits)
    negative = -((1 - target) ** 4) * probability**2 * log(-logits)
    total = (torch.where(target == 1.0, positive, negative).sum(dim=(1, 2)) * weights).sum() / objects
    # Points around the middle learn the box; a point near two objects learns the smaller one.
    near = (distance <= size[:, None] * _MIDDLE).all(dim=2) | nearest
    area = torch.where(near, size.prod(dim=1)[:, None], torch.inf)
    for i in range(count):
        of_image = image == i
        if not bool(of_image.any()):
            continue
        least, owner = area[of_image].min(dim=0)
        indices = least.isfinite().nonzero()[:, 0]
        predicted = _corners(points[indices], distances[i].flatten(1).T[indices])
        losses = 1.0 - _generalised_iou(predicted, boxes[of_image][owner[indices]])
        total = total + _BOXES * losses.mean() * weights[i] / count
    return total


def _corners(points: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """float (n, 4): left, top, right, bottom."""
    torch = torch_import.torch()
    return torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)


def _generalised_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """float (n,), -1 to 1, pair by pair (Rezatofighi et al. 2019, arXiv 1902.09630), with gradients."""
    torch = torch_import.torch()
    high, low = torch.minimum(first[:, 2:], second[:, 2:]), torch.maximum(first[:, :2], second[:, :2])
    intersection = (high - low).clamp(min=0).prod(1)
    union = (first[:, 2:] - first[:, :2]).prod(1) + (second[:, 2:] - second[:, :2]).prod(1) - intersection
    hull = (torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])).prod(1)
    return intersection / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


# Predictions ------------------------------------------------------------------------------------------------

_Boxes = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (m, 4) in the square's pixels, class numbers, scores


def _peaks(heat: torch.Tensor, distances: torch.Tensor) -> list[_Boxes]:
    """For each image the points with more heat than their eight neighbours, with their boxes."""
    torch = torch_import.torch()
    count, _, rows, columns = heat.shape
    probability = heat.sigmoid()
    peak = torch.nn.functional.max_pool2d(probability, 3, 1, 1) == probability
    points = _points(rows, columns, heat.device)
    images = []
    for i in range(count):
        scores = (probability[i] * peak[i]).flatten()
        scores, order = scores.topk(min(MOST_BOXES, len(scores)))
        order = order[scores >= SCORE_FROM]
        scores = scores[scores >= SCORE_FROM]
        point, classes = order % (rows * columns), order // (rows * columns)
        boxes = _corners(points[point], distances[i].flatten(1).T[point])
        # Shifted far apart by class: boxes of two classes never suppress each other.
        shift = classes[:, None].float() * (boxes.abs().max() * 4 + 1 if len(boxes) else 1)
        kept = torchvision_operators.nms(boxes + shift, scores, OVERLAP)
        images.append((boxes[kept].cpu().numpy(), classes[kept].cpu().numpy(), scores[kept].cpu().numpy()))
    return images


def _torchvision_boxes(out: Sequence[dict[str, torch.Tensor]]) -> list[_Boxes]:
    """The output of torchvision's detectors in the same form."""
    images = []
    for image in out:
        kept = (image["scores"] >= SCORE_FROM) & (image["labels"] > 0)
        parts = (image["boxes"], image["labels"] - 1, image["scores"])
        boxes, classes, scores = (part[kept][:MOST_BOXES].cpu().numpy() for part in parts)
        images.append((boxes, classes, scores))
    return images


def _prediction(
    sample: Sample, boxes: np.ndarray, numbers: np.ndarray, scores: np.ndarray, classes: Sequence[str]
) -> Prediction:
    width, height = sample.size
    inside = np.clip(_in_original(boxes, sample), 0, [width, height, width, height])
    visible = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    order = np.argsort(-scores[visible], kind="stable")
    rows = _rows(inside[visible][order], numbers[visible][order], scores[visible][order], classes)
    label, confidence = (rows[0]["label"], rows[0]["score"]) if rows else (None, None)
    return Prediction(sample.image_id, label, confidence, boxes=rows)


def _in_original(boxes: np.ndarray, sample: Sample) -> np.ndarray:
    """float64 (m, 4): corners in the square's pixels, converted to the original's pixels."""
    left, top, right, bottom = sample.view
    height, width = sample.image.shape[:2]
    scale = np.array([(right - left) / width, (bottom - top) / height] * 2)
    converted: np.ndarray = np.asarray(boxes, np.float64).reshape(-1, 4) * scale + [left, top, left, top]
    return converted


def _rows(
    corners: np.ndarray, numbers: np.ndarray, scores: np.ndarray | None, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Boxes with the fields of `lake.storage.schema.BOXES`; class -1 has no label."""
    values = [None] * len(corners) if scores is None else [min(1.0, float(score)) for score in scores]
    return [
        {"label": classes[int(k)] if k >= 0 else None, "score": score, "x": float(x), "y": float(y),
         "width": float(right - x), "height": float(bottom - y)}
        for (x, y, right, bottom), k, score in zip(corners, numbers, values, strict=True)
    ]  # fmt: skip
