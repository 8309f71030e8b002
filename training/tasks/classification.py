"""Classification: one class an image, by a linear head on a backbone's features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from embeddings.embedders import torch_import
from lake.errors import BadInput
from training.metrics import metric_registry
from training.metrics.metric import EvaluatedPredictions
from training.networks import backbones
from training.tasks.task import Batch, Prediction, Sample, collated

if TYPE_CHECKING:
    import torch

# Images a forward pass when nothing is learned.
CHUNK = 64


class Classification:
    """A `training.task.Task`. `label_smoothing`: share of the truth that is spread over all classes, 0 to 1."""

    name = "classification"
    metric = "balanced_accuracy"
    geometry: Literal["crop", "squash"] = "squash"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

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
        """uint8 (n, 3, side, side) -> logits (n, classes). Buffer `temperature` divides them where confidences are
        asked for. Raises BadInput for fewer than two classes."""
        if len(classes) < 2:
            raise BadInput(f"a classifier needs two classes or more; the labels have {[*classes]}")
        made = backbones.build(architecture, pretrained=pretrained, file=weights, trust_sha256=trust_sha256)
        return _classifier(made, len(classes), dropout)

    def side(self, architecture: str) -> int:
        return backbones.side(architecture)

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Targets: int64 (n,), -1 for a class that the model does not have."""
        torch = torch_import.torch()
        return collated(samples, torch.tensor([-1 if s.target.label is None else s.target.label for s in samples]))

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy."""
        functional = torch_import.torch().nn.functional
        each = functional.cross_entropy(
            network(batch.images),
            batch.targets,
            ignore_index=-1,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return (each * batch.weights).mean()

    def predictions(
        self, network: torch.nn.Module, samples: Sequence[Sample], classes: Sequence[str]
    ) -> list[Prediction]:
        logits, temperature = self._logits(network, samples), _temperature(network)
        return from_probabilities([s.image_id for s in samples], softmax(logits / temperature), classes)

    def evaluate(
        self, samples: Sequence[Sample], answers: Sequence[Prediction], classes: Sequence[str]
    ) -> dict[str, float]:
        """accuracy, balanced_accuracy, ece (each 0 to 1) and loss (mean negative log of the true class's confidence).

        An image of a class that the model does not have is never answered right.
        """
        truth = ["" if (label := s.target.label) is None or label < 0 else classes[label] for s in samples]
        rows = EvaluatedPredictions.of(
            [{"label": name} for name in truth], [answer.row() for answer in answers], classes
        )
        chance = [dict(answer.scores).get(name, 0.0) for answer, name in zip(answers, truth, strict=True)]
        found = {name: metric_registry.get(name).value(rows) for name in ("accuracy", "balanced_accuracy", "ece")}
        return found | {"loss": float(-np.log(np.maximum(chance, 1e-12)).mean())}

    def calibrate(self, network: torch.nn.Module, samples: Sequence[Sample]) -> dict[str, float]:
        """One temperature for all logits (Guo et al., ICML 2017, arXiv 1706.04599), set in the network."""
        kept = [s for s in samples if s.target.label is not None and s.target.label >= 0]
        if not kept:
            return {}
        labels = np.array([s.target.label for s in kept])
        found = temperature_of(self._logits(network, kept), labels)
        network.get_buffer("temperature").fill_(found)
        return {"temperature": found}

    def _logits(self, network: torch.nn.Module, samples: Sequence[Sample]) -> np.ndarray:
        torch = torch_import.torch()
        device = next(network.parameters()).device
        found = []
        with torch.no_grad():
            for start in range(0, len(samples), CHUNK):
                images = self.batch(samples[start : start + CHUNK]).images.to(device)
                found.append(network(images).double().cpu().numpy())
        logits: np.ndarray = np.concatenate(found)
        return logits


def from_probabilities(image_ids: Sequence[str], chances: np.ndarray, classes: Sequence[str]) -> list[Prediction]:
    """Answers of (n, classes) probabilities, every class among the scores."""
    answers = []
    for name, row in zip(image_ids, chances, strict=True):
        order = np.argsort(-row, kind="stable")
        scores = [(classes[i], float(row[i])) for i in order]
        answers.append(Prediction(name, scores[0][0], scores[0][1], scores))
    return answers


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return found


def temperature_of(logits: np.ndarray, labels: np.ndarray, low: float = 0.05, high: float = 20.0) -> float:
    """What logits (n, classes) are to be divided by for the least mean negative log-likelihood of `labels` (n,).

    Golden section over its logarithm: the likelihood has one peak in 1 / T. A prior that weighs as much as one image
    holds it near 1: answers that are all right would ask for a temperature of 0.
    """

    def cost(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        each = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]
        return float(each.mean() + 0.5 * log_t**2 / len(labels))

    a, b, golden = float(np.log(low)), float(np.log(high)), (5**0.5 - 1) / 2
    c, d = b - golden * (b - a), a + golden * (b - a)
    for _ in range(60):
        if cost(c) <= cost(d):
            b, c, d = d, d - golden * (d - a), c
            c = b - golden * (b - a)
        else:
            a, c, d = c, d, c + golden * (b - c)
            d = a + golden * (b - a)
    return float(np.exp((a + b) / 2))


def _temperature(network: Any) -> float:
    return float(network.get_buffer("temperature"))


def _classifier(backbone: backbones.Backbone, classes: int, dropout: float) -> torch.nn.Module:
    torch = torch_import.torch()

    class Classifier(torch.nn.Module):  # type: ignore[misc,name-defined]
        """(value / 255 - mean) / std, the backbone, dropout, one linear layer."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone.module
            self.dropout = torch.nn.Dropout(dropout)
            self.head = torch.nn.Linear(backbone.dim, classes)
            self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1))
            self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1))
            self.register_buffer("temperature", torch.ones(()))

        def forward(self, images: Any) -> Any:
            return self.head(self.dropout(self.backbone((images.float() / 255 - self.mean) / self.std)))

    return Classifier()
