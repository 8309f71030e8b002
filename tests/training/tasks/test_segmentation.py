"""Semantic segmentation as a task: batches, losses known by hand, masks given back in the original's pixels."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddings.embedders import torch_import, weights
from lake.errors import BadInput
from lake.regions import masks
from training.metrics.segmentation_metrics import IGNORED
from training.tasks import task_registry
from training.tasks.segmentation import Segmentation
from training.tasks.task import Prediction, Sample, Target

torch = torch_import.torch()


class Says(torch.nn.Module):  # type: ignore[misc,name-defined]
    """A network that gives fixed logits, (1 + classes, rows, columns), to every image."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.as_tensor(logits, dtype=torch.float32))

    def forward(self, images: Any) -> Any:
        return OrderedDict(out=self.logits.expand(len(images), *self.logits.shape))


def cost(segmentation: Segmentation, network: Any, *samples: Sample) -> float:
    with torch.no_grad():
        return float(segmentation.loss(network, segmentation.batch([*samples])))


def sample(mask: np.ndarray | None, **changes: Any) -> Sample:
    side = 4 if mask is None else mask.shape[0]
    known = {"size": (side, side), "view": (0.0, 0.0, float(side), float(side))} | changes
    return Sample("x", np.zeros((side, side, 3), np.uint8), Target(mask=mask), **known)


def test_it_is_the_task_of_its_name() -> None:
    assert task_registry.get("segmentation").name == "segmentation"
    assert isinstance(task_registry.get("segmentation"), Segmentation)


def test_samples_without_a_mask_teach_nothing() -> None:
    segmentation = Segmentation()
    batch = segmentation.batch([sample(None), sample(np.ones((4, 4), np.uint8))])
    assert batch.images.shape == (2, 3, 4, 4)
    assert (batch.targets[0] == IGNORED).all()
    assert (batch.targets[1] == 1).all()
    network = Says(np.zeros((3, 4, 4)))
    assert cost(Segmentation(dice=0.0), network, sample(None)) == 0.0


def test_the_loss_of_knowing_nothing() -> None:
    """Three equal logits: cross-entropy log 3; Dice of class 1 is 1 - (2 * 16 / 3 + 1) / (16 / 3 + 16 + 1)."""
    mask = np.ones((4, 4), np.uint8)
    network, segmentation = Says(np.zeros((3, 4, 4))), Segmentation()
    assert cost(Segmentation(dice=0.0), network, sample(mask)) == pytest.approx(math.log(3))
    of_others = 1 - 1 / (16 / 3 + 1)
    of_one = 1 - (2 * 16 / 3 + 1) / (16 / 3 + 16 + 1)
    want = math.log(3) + (of_one + 2 * of_others) / 3
    assert cost(segmentation, network, sample(mask)) == pytest.approx(want, rel=1e-5)


def test_a_weight_multiplies_an_images_loss() -> None:
    mask = np.ones((4, 4), np.uint8)
    network, plain = Says(np.zeros((3, 4, 4))), Segmentation(dice=0.0)
    assert cost(plain, network, sample(mask, weight=3.0), sample(mask)) == pytest.approx(2 * math.log(3))


def test_ignored_pixels_cost_nothing() -> None:
    mask = np.full((4, 4), IGNORED, np.uint8)
    mask[0, 0] = 1
    logits = np.zeros((2, 4, 4))
    logits[1, 0, 0] = 30.0  # right where it is judged
    logits[0, 1:] = 30.0  # whatever elsewhere
    assert cost(Segmentation(), Says(logits), sample(mask)) == pytest.approx(0.0, abs=1e-5)


def test_a_prediction_has_one_mask_for_each_class() -> None:
    """The left half is class b with 9 : 1, the rest background: on an original twice as wide as high."""
    logits = np.zeros((3, 8, 8))
    logits[2, :, :4] = math.log(18)  # 18 / (1 + 1 + 18) = 0.9
    logits[0, :, 4:] = 5.0
    example = Sample("x", np.zeros((8, 8, 3), np.uint8), size=(32, 16), view=(0.0, 0.0, 32.0, 16.0))
    prediction = Segmentation().predictions(Says(logits).eval(), [example], ["a", "b"])[0]
    assert [m["label"] for m in prediction.masks] == ["b"]
    mask = masks.decode(prediction.masks[0]["counts"], 16, 32)
    assert mask[:, :14].all()
    assert not mask[:, 18:].any()
    assert prediction.masks[0]["score"] == pytest.approx(0.9, abs=0.06)  # a little less at the edge
    assert (prediction.label, prediction.confidence) == ("b", prediction.masks[0]["score"])


def test_outside_of_what_was_shown_is_background() -> None:
    logits = np.zeros((2, 4, 4))
    logits[1] = 5.0
    example = Sample("x", np.zeros((4, 4, 3), np.uint8), size=(12, 4), view=(4.0, 0.0, 8.0, 4.0))
    prediction = Segmentation().predictions(Says(logits).eval(), [example], ["a"])[0]
    mask = masks.decode(prediction.masks[0]["counts"], 4, 12)
    assert mask.sum() == 16
    assert mask[:, 4:8].all()


def test_background_only_has_no_mask() -> None:
    logits = np.zeros((2, 4, 4))
    logits[0] = 5.0
    prediction = Segmentation().predictions(Says(logits).eval(), [sample(None)], ["a"])[0]
    assert (prediction.label, prediction.confidence, list(prediction.masks)) == (None, None, [])


def test_evaluation_is_in_the_squares_pixels_and_needs_no_image() -> None:
    truth = np.zeros((4, 4), np.uint8)
    truth[:, :2] = 1
    shown = np.broadcast_to(np.uint8(0), (4, 4, 3))  # as the trainer hands samples over: no pixels any more
    example = Sample("x", shown, Target(mask=truth), size=(8, 8), view=(0.0, 0.0, 8.0, 8.0))
    predicted = np.zeros((8, 8), bool)
    predicted[:, 2:6] = True
    row = {"label": "a", "score": 1.0, "height": 8, "width": 8, "counts": masks.encode(predicted)}
    metrics = Segmentation().evaluate([example], [Prediction("x", masks=[row])], ["a"])
    assert metrics == pytest.approx({"miou": 1 / 3, "iou:background": 1 / 3, "iou:a": 1 / 3})


@pytest.mark.parametrize("architecture", ["unet-small", "unet-lite0"])
def test_the_compact_networks(architecture: str) -> None:
    segmentation = Segmentation()
    network = segmentation.network(architecture, ["a", "b"], pretrained=False)
    images = torch.zeros((2, 3, 51, 38), dtype=torch.uint8)  # no side has to be a multiple of anything
    assert network(images)["out"].shape == (2, 3, 51, 38)
    names = [name for name, _ in network.named_parameters()]
    assert any(n.startswith("backbone.") for n in names)
    assert {n.partition(".")[0] for n in names} == {"backbone", "decoder", "classifier"}


def test_a_compact_network_goes_on_from_its_file_with_other_classes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    segmentation = Segmentation()
    first = segmentation.network("unet-small", ["a", "b"], pretrained=False)
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "unet.safetensors")
    again = segmentation.network("unet-small", ["a", "b"], weights=tmp_path / "unet.safetensors")
    assert weights.fingerprint(again) == weights.fingerprint(first)
    other = segmentation.network("unet-small", ["a"], weights=tmp_path / "unet.safetensors")
    assert other(torch.zeros((1, 3, 32, 32), dtype=torch.uint8))["out"].shape == (1, 2, 32, 32)
    assert torch.equal(other.backbone.stem[0].weight, first.backbone.stem[0].weight)


def test_where_no_weights_are_published_nothing_else_is_taken() -> None:
    with pytest.raises(BadInput, match="pretrained=false"):
        Segmentation().network("unet-small", ["a"])
    with pytest.raises(BadInput, match="not both"):
        Segmentation().network("unet-small", ["a"], pretrained=False, weights=Path("x"))
