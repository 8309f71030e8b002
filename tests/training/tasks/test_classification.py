"""Logits, loss and confidences of the classifier, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embeddings.embedders import torch_import
from lake.errors import BadInput
from training.tasks import task_registry
from training.tasks.classification import Classification, from_probabilities, softmax, temperature_of
from training.tasks.task import Prediction, Sample, Target


def sample(label: int | None, weight: float = 1.0) -> Sample:
    return Sample("x", np.zeros((8, 8, 3), np.uint8), Target(label), weight)


class Fixed:
    """Stands for a network: the same logits for every image."""

    def __new__(cls, *logits: float) -> Any:
        torch = torch_import.torch()

        class Network(torch.nn.Module):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.logits = torch.nn.Parameter(torch.tensor(logits))
                self.register_buffer("temperature", torch.ones(()))

            def forward(self, images: Any) -> Any:
                return self.logits.expand(len(images), -1)

        return Network()


def test_loss_is_weighted_cross_entropy() -> None:
    task, network = Classification(), Fixed(0.0, math.log(3))
    batch = task.batch([sample(1, 2.0), sample(0, 1.0), sample(-1)])
    # -log(3/4) twice, -log(1/4) once, a class it does not have not at all
    assert task.loss(network, batch).item() == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3)


def test_predictions_have_a_score_for_every_class_highest_first() -> None:
    (prediction,) = Classification().predictions(Fixed(0.0, math.log(3)), [sample(0)], ["a", "b"])
    assert (prediction.label, prediction.confidence) == ("b", pytest.approx(0.75))
    assert [name for name, _ in prediction.scores] == ["b", "a"]


def test_evaluation_counts_unknown_classes_as_wrong() -> None:
    task = Classification()
    predictions = [Prediction("x", "a", 0.75, [("a", 0.75), ("b", 0.25)])] * 4
    metrics = task.evaluate([sample(0), sample(0), sample(1), sample(-1)], predictions, ["a", "b"])
    assert metrics["accuracy"] == 0.5
    assert metrics["balanced_accuracy"] == pytest.approx(1 / 3)
    assert metrics["ece"] == pytest.approx(0.25)


def test_the_temperature_is_the_one_the_logits_were_stretched_by() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4_000, 3))
    labels = np.array([rng.choice(3, p=row) for row in softmax(logits)])
    assert temperature_of(logits * 2.5, labels) == pytest.approx(2.5, rel=0.06)


def test_predictions_that_are_all_correct_do_not_become_certain() -> None:
    temperature = temperature_of(np.array([[4.0, 0.0]] * 20), np.zeros(20, int))
    assert 0.3 < temperature < 1.0


def test_calibration_keeps_the_predicted_labels_and_sets_the_temperature() -> None:
    task, network = Classification(), Fixed(0.0, 5.0)
    samples = [sample(1)] * 60 + [sample(0)] * 40
    metrics = task.calibrate(network, samples)
    assert float(network.temperature) == pytest.approx(metrics["temperature"])
    (prediction,) = task.predictions(network, [sample(0)], ["a", "b"])
    assert (prediction.label, round(prediction.confidence or 0, 1)) == ("b", 0.6)
    assert task.calibrate(network, [sample(None)]) == {}


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=6))
def test_scores_add_up_to_one(logits: list[float]) -> None:
    names = [str(i) for i in range(len(logits))]
    (prediction,) = from_probabilities(["x"], softmax(np.array([logits])), names)
    assert sum(score for _, score in prediction.scores) == pytest.approx(1.0)
    assert prediction.confidence == max(score for _, score in prediction.scores)


def test_one_class_is_no_task() -> None:
    with pytest.raises(BadInput, match="two classes"):
        Classification().network("resnet18", ["a"], pretrained=False)
    with pytest.raises(BadInput, match="use one of classification, detection, segmentation"):
        task_registry.get("regression")
