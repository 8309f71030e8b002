"""Classification: one class for each image, by a linear head on a backbone's features."""

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
from training.tasks.task import Batch, Prediction, Sample, collate

if TYPE_CHECKING:
    import torch

# Images in a forward pass without training.
CHUNK = 64


class Classification:
    """A `Task`. `label_smoothing`: the share of the target that is spread over all classes, 0 to 1."""

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
        """uint8 (n, 3, side, side) -> logits (n, classes). The buffer `temperature` divides the logits of predictions.

        Raises BadInput for fewer than two classes.
        """
        if len(classes) < 2:
            raise BadInput(f"a classifier needs two classes or more; the labels have {[*classes]}")
        backbone = backbones.build(architecture, pretrained=pretrained, file=weights, trust_sha256=trust_sha256)
        return _classifier(backbone, len(classes), dropout)

    def side(self, architecture: str) -> int:
        return backbones.side(architecture)

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Targets: int64 (n,); -1 for a class that the model does not have."""
        torch = torch_import.torch()
        return collate(samples, torch.tensor([-1 if s.target.label is None else s.target.label for s in samples]))

    def loss(self, network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy."""
        functional = torch_import.torch().nn.functional
        losses = functional.cross_entropy(
            network(batch.images),
            batch.targets,
            ignore_index=-1,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return (losses * batch.weights).mean()

    def predictions(
        self, network: torch.nn.Module, samples: Sequence[Sample], classes: Sequence[str]
    ) -> list[Prediction]:
        logits, temperature = self._logits(network, samples), _temperature(network)
        return from_probabilities([s.image_id for s in samples], softmax(logits / temperature), classes)

    def evaluate(
        self, samples: Sequence[Sample], predictions: Sequence[Prediction], classes: Sequence[str]
    ) -> dict[str, float]:
        """accuracy, balanced_accuracy, ece (each 0 to 1) and loss (mean negative log of the true class's confidence).

        No prediction is correct for an image of a class that the model does not have.
        """
        labels = ["" if (label := s.target.label) is None or label < 0 else classes[label] for s in samples]
        evaluated = EvaluatedPredictions.of(
            [{"label": name} for name in labels], [prediction.row() for prediction in predictions], classes
        )
        confidences = [dict(p.scores).get(name, 0.0) for p, name in zip(predictions, labels, strict=True)]
        names = ("accuracy", "balanced_accuracy", "ece")
        return {name: metric_registry.get(name).value(evaluated) for name in names} | {
            "loss": float(-np.log(np.maximum(confidences, 1e-12)).mean())
        }

    def calibrate(self, network: torch.nn.Module, samples: Sequence[Sample]) -> dict[str, float]:
        """Sets one temperature for all logits in the network (Guo et al., ICML 2017, arXiv 1706.04599)."""
        known = [s for s in samples if s.target.label is not None and s.target.label >= 0]
        if not known:
            return {}
        labels = np.array([s.target.label for s in known])
        temperature = temperature_of(self._logits(network, known), labels)
        network.get_buffer("temperature").fill_(temperature)
        return {"temperature": temperature}

    def _logits(self, network: torch.nn.Module, samples: Sequence[Sample]) -> np.ndarray:
        torch = torch_import.torch()
        device = next(network.parameters()).device
        parts = []
        with torch.no_grad():
            for start in range(0, len(samples), CHUNK):
                images = self.batch(samples[start : start + CHUNK]).images.to(device)
                parts.append(network(images).double().cpu().numpy())
        logits: np.ndarray = np.concatenate(parts)
        return logits


def from_probabilities(image_ids: Sequence[str], probabilities: np.ndarray, classes: Sequence[str]) -> list[Prediction]:
    """Predictions of probabilities (n, classes), with a score for every class."""
    predictions = []
    for name, row in zip(image_ids, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")
        scores = [(classes[i], float(row[i])) for i in order]
        predictions.append(Prediction(name, scores[0][0], scores[0][1], scores))
    return predictions


def softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of probabilities."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def temperature_of(logits: np.ndarray, labels: np.ndarray, low: float = 0.05, high: float = 20.0) -> float:
    """The divisor of logits (n, classes) with the smallest mean negative log-likelihood of `labels` (n,).

    Golden section search over its logarithm: the likelihood has one peak in 1 / T. A prior with the weight of one image
    keeps it near 1: predictions that are all correct would otherwise give a temperature of 0.
    """

    def cost(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        scaled = scaled - scaled.max(axis=1, keepdims=True)
        losses = np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(labels)), labels]
        return float(losses.mean() + 0.5 * log_t**2 / len(labels))

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
