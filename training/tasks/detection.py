"""Detection: a box, a class and a score for every thing.

Networks: `centernet-lite0` and `centernet-small` (`training/networks/compact_networks.py`), and torchvision's SSD,
RetinaNet and Faster R-CNN (`training/networks/torchvision_networks.py`). Class i of the model is class i of the compact
networks' heat, and label i + 1 of torchvision's, whose label 0 is background.

`label` and `confidence` of an answer are of the box with the highest score; an image without boxes has neither.
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
from training.networks import nms, torchvision_networks
from training.tasks.task import Batch, Prediction, Sample, collated

if TYPE_CHECKING:
    import torch

# Name -> the side it is made for, in pixels.
COMPACT = {"centernet-lite0": 128, "centernet-small": 128}
ARCHITECTURES = (*COMPACT, *(n for n, facts in torchvision_networks.NETWORKS.items() if facts.task == "detection"))
# Answers keep boxes from this score on, and at most so many of an image: mean average precision wants the unsure, too.
SCORE_FROM = 0.05
MOST_BOXES = 100
# Of two boxes of a class that overlap by more than this the less sure one goes.
OVERLAP = 0.5
# Deviation of the heat around an object's centre, and how far from it points learn the box: shares of its size.
_SPREAD, _MIDDLE = 0.1, 0.2
# Weight of the boxes' loss beside the heat's.
_BOXES = 2.0
# Thinner than this in the square, in pixels, a box has nothing to be learned from; torchvision refuses empty ones.
_THINNEST = 1.0
# Images a forward pass when nothing is learned.
CHUNK = 8


class Detection:
    """A `training.task.Task`."""

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
        """Called with images uint8 (n, 3, height, width) and, in training, targets as torchvision takes them.

        Raises BadInput for an unknown architecture, no classes, or weights that do not fit.
        """
        _check(architecture)
        if not classes:
            raise BadInput("the labels name no class: detection needs boxes with a label")
        how: dict[str, Any] = {"pretrained": pretrained, "file": weights, "trust_sha256": trust_sha256}
        if architecture in COMPACT:
            torch_import.torch()
            from training.networks import compact_networks

            return compact_networks.build(architecture, len(classes), dropout=dropout, **how)
        return torchvision_networks.build(architecture, len(classes) + 1, dropout=dropout, **how)

    def side(self, architecture: str) -> int:
        _check(architecture)
        return COMPACT[architecture] if architecture in COMPACT else torchvision_networks.NETWORKS[architecture].side

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Targets, one an image: boxes float32 (m, 4), corners in the square's pixels; labels int64 (m,) from 1."""
        torch = torch_import.torch()
        targets = []
        for sample in samples:
            boxes = np.asarray(sample.target.boxes, np.float32).reshape(-1, 4)
            kept = (boxes[:, 2:] - boxes[:, :2] >= _THINNEST).all(axis=1)
            labels = np.asarray(sample.target.box_classes, np.int64)[kept] + 1
            targets.append({"boxes": torch.from_numpy(boxes[kept]), "labels": torch.from_numpy(labels)})
        return collated(samples, targets)

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The compact networks': focal loss of the heat and generalised overlap of the boxes. torchvision's: the sum of
        their own losses, which know no weights: BadInput when the images of a batch differ in weight."""
        found = network(batch.images, batch.targets)
        if "heat" in found:
            return _compact_loss(found["heat"].float(), found["distances"].float(), batch)
        if bool((batch.weights != batch.weights[0]).any()):
            raise BadInput("torchvision's detectors cannot weigh images: leave out weights, or use a centernet")
        total: torch.Tensor = sum(found.values()) * batch.weights[0]
        return total

    def predictions(
        self, network: torch.nn.Module, samples: Sequence[Sample], classes: Sequence[str]
    ) -> list[Prediction]:
        torch = torch_import.torch()
        device = next(network.parameters()).device
        found: list[Prediction] = []
        with torch.no_grad():
            for start in range(0, len(samples), CHUNK):
                some = samples[start : start + CHUNK]
                out = network(self.batch(some).images.to(device))
                boxes = _peaks(out["heat"].float(), out["distances"].float()) if isinstance(out, dict) else _listed(out)
                found += [_answer(s, *one, classes) for s, one in zip(some, boxes, strict=True)]
        return found

    def evaluate(
        self, samples: Sequence[Sample], answers: Sequence[Prediction], classes: Sequence[str]
    ) -> dict[str, float]:
        """map_50, map and the other means of `AveragePrecisions`, 0 to 1, by boxes in the originals' pixels."""
        truths = [_rows(_back(s.target.boxes, s), s.target.box_classes, None, classes) for s in samples]
        return detection_metrics.match(truths, [a.boxes for a in answers]).average_precisions().means()

    def calibrate(self, network: torch.nn.Module, samples: Sequence[Sample]) -> dict[str, float]:
        """Nothing is calibrated."""
        return {}


def _check(architecture: str) -> None:
    if architecture not in ARCHITECTURES:
        near = difflib.get_close_matches(architecture, ARCHITECTURES, 3, 0.4) or ARCHITECTURES
        raise BadInput(f"no detector {architecture!r}; did you mean {', '.join(near)}?")


# Learning ---------------------------------------------------------------------------------------------------


def _points(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """float (rows * columns, 2): x and y of the middles of the points' squares, in pixels, row by row."""
    from training.networks.compact_networks import POINT_STRIDE

    torch = torch_import.torch()
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    return (torch.stack([x, y], dim=2).reshape(-1, 2).float() + 0.5) * POINT_STRIDE


def _compact_loss(heat: torch.Tensor, distances: torch.Tensor, batch: Batch) -> torch.Tensor:
    torch = torch_import.torch()
    count, kinds, rows, columns = heat.shape
    points = _points(rows, columns, heat.device)
    image = torch.repeat_interleave(
        torch.arange(count, device=heat.device), torch.tensor([len(t["labels"]) for t in batch.targets]).to(heat.device)
    )
    boxes = torch.cat([t["boxes"] for t in batch.targets])
    labels = torch.cat([t["labels"] for t in batch.targets]) - 1
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    away = (points[None] - middle[:, None]).abs()  # (objects, points, 2)
    # Nearest to its middle: an object's one certain point, however small it is.
    certain = torch.zeros(away.shape[:2], dtype=torch.bool, device=heat.device)
    certain.scatter_(1, away.sum(dim=2).argmin(dim=1, keepdim=True), True)
    spread = (size * _SPREAD).clamp(min=2.0)[:, None]
    warm = torch.exp(-0.5 * ((away / spread) ** 2).sum(dim=2)).masked_fill(certain, 1.0)
    wanted = torch.zeros(count, kinds, rows * columns, device=heat.device)
    for where, one in zip((image * kinds + labels).tolist(), warm, strict=True):
        place = wanted.view(count * kinds, -1)[where]
        torch.maximum(place, one, out=place)
    weights, objects = batch.weights, max(1, len(boxes))
    # CenterNet's focal loss: near the middle being warm is no great mistake.
    logits = heat.flatten(2)
    chance, log = logits.sigmoid(), torch.nn.functional.logsigmoid
    centre = wanted == 1.0
    costs = torch.where(centre, -((1 - chance) ** 2) * log(logits), -((1 - wanted) ** 4) * chance**2 * log(-logits))
    total = (costs.sum(dim=(1, 2)) * weights).sum() / objects
    # Around the middle, points learn the box; where two claim one, the smaller does.
    near = (away <= size[:, None] * _MIDDLE).all(dim=2) | certain
    area = torch.where(near, size.prod(dim=1)[:, None], torch.inf)
    for one in range(count):
        mine = image == one
        if not bool(mine.any()):
            continue
        least, owner = area[mine].min(dim=0)
        place = least.isfinite().nonzero()[:, 0]
        said = _corners(points[place], distances[one].flatten(1).T[place])
        lost = 1.0 - _generalised_overlap(said, boxes[mine][owner[place]])
        total = total + _BOXES * lost.mean() * weights[one] / count
    return total


def _corners(points: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """float (n, 4): left, top, right, bottom."""
    torch = torch_import.torch()
    return torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)


def _generalised_overlap(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """float (n,), -1 to 1, pair by pair (Rezatofighi et al. 2019, arXiv 1902.09630). A loss: it needs gradients, which
    `lake.regions.boxes` does not have.
    """
    torch = torch_import.torch()
    both = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0).prod(1)
    either = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - both
    around = (torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])).prod(1)
    return both / either.clamp(min=1e-6) - (around - either) / around.clamp(min=1e-6)


# Answering --------------------------------------------------------------------------------------------------

_Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (m, 4) in the square's pixels, class numbers, scores


def _peaks(heat: torch.Tensor, distances: torch.Tensor) -> list[_Found]:
    """Points that are warmer than their eight neighbours, with their boxes."""
    torch = torch_import.torch()
    count, _, rows, columns = heat.shape
    chance = heat.sigmoid()
    peak = torch.nn.functional.max_pool2d(chance, 3, 1, 1) == chance
    points = _points(rows, columns, heat.device)
    found = []
    for one in range(count):
        scores = (chance[one] * peak[one]).flatten()
        scores, order = scores.topk(min(MOST_BOXES, len(scores)))
        order = order[scores >= SCORE_FROM]
        scores = scores[scores >= SCORE_FROM]
        place, kind = order % (rows * columns), order // (rows * columns)
        boxes = _corners(points[place], distances[one].flatten(1).T[place])
        # Far apart by class: boxes of two classes never suppress each other.
        apart = kind[:, None].float() * (boxes.abs().max() * 4 + 1 if len(boxes) else 1)
        kept = nms.nms(boxes + apart, scores, OVERLAP)
        found.append((boxes[kept].cpu().numpy(), kind[kept].cpu().numpy(), scores[kept].cpu().numpy()))
    return found


def _listed(out: Sequence[dict[str, torch.Tensor]]) -> list[_Found]:
    """What torchvision's detectors give, in the same form."""
    found = []
    for one in out:
        kept = (one["scores"] >= SCORE_FROM) & (one["labels"] > 0)
        parts = (one["boxes"], one["labels"] - 1, one["scores"])
        boxes, labels, scores = (part[kept][:MOST_BOXES].cpu().numpy() for part in parts)
        found.append((boxes, labels, scores))
    return found


def _answer(
    sample: Sample, boxes: np.ndarray, kinds: np.ndarray, scores: np.ndarray, classes: Sequence[str]
) -> Prediction:
    width, height = sample.size
    inside = np.clip(_back(boxes, sample), 0, [width, height, width, height])
    kept = (inside[:, 2:] > inside[:, :2]).all(axis=1)
    order = np.argsort(-scores[kept], kind="stable")
    rows = _rows(inside[kept][order], kinds[kept][order], scores[kept][order], classes)
    label, confidence = (rows[0]["label"], rows[0]["score"]) if rows else (None, None)
    return Prediction(sample.image_id, label, confidence, boxes=rows)


def _back(boxes: np.ndarray, sample: Sample) -> np.ndarray:
    """float64 (m, 4): corners in the square's pixels, in the original's."""
    left, top, right, bottom = sample.view
    height, width = sample.image.shape[:2]
    scale = np.array([(right - left) / width, (bottom - top) / height] * 2)
    moved: np.ndarray = np.asarray(boxes, np.float64).reshape(-1, 4) * scale + [left, top, left, top]
    return moved


def _rows(
    corners: np.ndarray, kinds: np.ndarray, scores: np.ndarray | None, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """As `lake.storage.schema.BOXES` has them."""
    sure = [None] * len(corners) if scores is None else [min(1.0, float(s)) for s in scores]
    return [
        {"label": classes[int(k)], "score": s, "x": float(x), "y": float(y),
         "width": float(right - x), "height": float(bottom - y)}
        for (x, y, right, bottom), k, s in zip(corners, kinds, sure, strict=True)
    ]  # fmt: skip
