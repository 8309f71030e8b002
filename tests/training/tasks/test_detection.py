"""Detection as a task: boxes given back in the original's pixels, the heat's peaks, and a step that learns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from embeddings.embedders import torch_import
from training.data.augmentation import Augmentation, _flipped
from training.tasks import task_registry
from training.tasks.detection import MOST_BOXES, Detection, _peaks
from training.tasks.task import Prediction, Sample, Target

torch = torch_import.torch()


def sample(boxes: Any, classes: Any, side: int = 64, **changes: Any) -> Sample:
    target = Target(boxes=np.array(boxes, np.float32).reshape(-1, 4), box_classes=np.array(classes, np.int64))
    known = {"size": (side, side), "view": (0.0, 0.0, float(side), float(side))} | changes
    return Sample("x", np.zeros((side, side, 3), np.uint8), target, **known)


class Says(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Fixed heat (logits) and distances for every image, as CenterNet gives them."""

    def __init__(self, heat: Any, distances: Any) -> None:
        super().__init__()
        self.heat = torch.nn.Parameter(heat)
        self.distances = torch.nn.Parameter(distances)

    def forward(self, images: Any, targets: Any = None) -> Any:
        count = len(images)
        return {"heat": self.heat.expand(count, -1, -1, -1), "distances": self.distances.expand(count, -1, -1, -1)}


def perfect(boxes: np.ndarray, class_numbers: list[int], classes: int, side: int = 64) -> Says:
    """Hot at the point in each box's middle, where the distances lead to its edges; cold elsewhere."""
    cells = side // 4
    heat, distances = torch.full((1, classes, cells, cells), -12.0), torch.ones((1, 4, cells, cells))
    for (left, top, right, bottom), kind in zip(boxes.tolist(), class_numbers, strict=True):
        column, row = int((left + right) / 8), int((top + bottom) / 8)
        for r in range(max(0, row - 3), min(cells, row + 4)):
            for c in range(max(0, column - 3), min(cells, column + 4)):
                x, y = (c + 0.5) * 4, (r + 0.5) * 4
                distances[0, :, r, c] = torch.tensor([x - left, y - top, right - x, bottom - y])
        heat[0, kind, row, column] = 12.0
    return Says(heat, distances)


def cost(network: Any, batch: Any) -> float:
    with torch.no_grad():
        return float(Detection().loss(network, batch))


def test_it_is_the_task_of_its_name() -> None:
    assert task_registry.get("detection").name == "detection"
    assert isinstance(task_registry.get("detection"), Detection)


def test_boxes_come_back_in_the_originals_pixels() -> None:
    """A square of 64 shows the part of the original from (100, 40) on, 128 x 96 pixels large."""
    boxes = np.array([[8, 8, 40, 24], [44, 40, 60, 64]], np.float32)
    one = sample(boxes, [0, 1], size=(400, 300), view=(100.0, 40.0, 228.0, 136.0))
    prediction = Detection().predictions(perfect(boxes, [0, 1], 2).eval(), [one], ["cat", "dog"])[0]
    boxes_of = {b["label"]: (b["x"], b["y"], b["width"], b["height"]) for b in prediction.boxes}
    assert boxes_of["cat"] == pytest.approx((116, 52, 64, 24), abs=1e-3)
    assert boxes_of["dog"] == pytest.approx((188, 100, 32, 36), abs=1e-3)
    assert prediction.confidence == pytest.approx(1.0, abs=1e-4)
    assert Detection().evaluate([one], [prediction], ["cat", "dog"])["map"] == pytest.approx(1.0)


def test_boxes_end_where_the_image_does() -> None:
    boxes = np.array([[-20, -8, 30, 30]], np.float32)
    prediction = Detection().predictions(perfect(boxes, [0], 1).eval(), [sample(boxes, [0])], ["cat"])[0]
    assert [(b["x"], b["y"], b["width"], b["height"]) for b in prediction.boxes] == [(0.0, 0.0, 30.0, 30.0)]


def test_an_image_without_things() -> None:
    cold = Says(torch.full((1, 2, 16, 16), -9.0), torch.ones((1, 4, 16, 16)))
    prediction = Detection().predictions(cold.eval(), [sample([], [])], ["cat", "dog"])[0]
    assert (prediction.label, prediction.confidence, list(prediction.boxes)) == (None, None, [])
    assert 0.0 <= cost(cold, Detection().batch([sample([], [])])) < 0.01


def test_two_peaks_on_one_thing_are_one_box_but_two_classes_are_two() -> None:
    heat = torch.full((1, 2, 16, 16), -9.0)
    heat[0, 0, 8, 6], heat[0, 0, 8, 9], heat[0, 1, 8, 6] = 3.0, 2.0, 2.5
    distances = torch.full((1, 4, 16, 16), 20.0)
    boxes, class_numbers, scores = _peaks(heat, distances)[0]
    assert class_numbers.tolist() == [0, 1]
    assert scores.tolist() == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-2.5))])
    assert boxes[0].tolist() == [6.0, 14.0, 46.0, 54.0]


def test_more_peaks_than_are_kept() -> None:
    heat = torch.full((1, 1, 64, 64), -9.0)
    heat[0, 0, ::3, ::3] = torch.linspace(1, 5, 22 * 22).view(22, 22)
    boxes, _, scores = _peaks(heat, torch.ones((1, 4, 64, 64)))[0]
    assert len(boxes) == MOST_BOXES
    assert scores.min() > 1 / (1 + np.exp(-4.0))


def test_being_right_costs_little_and_each_wrong_thing_more() -> None:
    boxes = np.array([[10, 10, 42, 26], [46, 44, 62, 64]], np.float32)  # in the middle of each stands a point
    batch = Detection().batch([sample(boxes, [0, 1])])
    right = cost(perfect(boxes, [0, 1], 2), batch)
    assert right < 0.05
    assert cost(perfect(boxes, [1, 0], 2), batch) > right + 1
    moved = boxes - [[8, 0, 8, 0]]
    assert cost(perfect(moved, [0, 1], 2), batch) > right + 1
    smaller = perfect(boxes, [0, 1], 2)
    with torch.no_grad():
        smaller.distances /= 2
    assert cost(smaller, batch) > right + 0.5


def test_a_weight_multiplies_an_images_loss() -> None:
    boxes = [[8, 8, 40, 24]]
    cold = Says(torch.full((1, 1, 16, 16), -2.0), torch.full((1, 4, 16, 16), 5.0))
    plain, heavy = sample(boxes, [0]), sample(boxes, [0], weight=3.0)
    batches = [Detection().batch([one, plain]) for one in (heavy, plain)]
    assert cost(cold, batches[0]) == pytest.approx(2 * cost(cold, batches[1]), rel=1e-5)


def test_boxes_too_thin_to_learn_are_left_out_of_the_batch() -> None:
    batch = Detection().batch([sample([[8, 8, 40, 24], [10, 10, 10.5, 30]], [1, 0])])
    assert batch.targets[0]["boxes"].tolist() == [[8, 8, 40, 24]]
    assert batch.targets[0]["labels"].tolist() == [2]


@pytest.mark.parametrize("architecture", ["centernet-small", "centernet-lite0"])
def test_the_compact_detectors_learn_one_image(architecture: str) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    detection = Detection()
    network = detection.network(architecture, ["a", "b"], pretrained=False)
    image = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
    image[8:40, 8:40] += 150
    one = Sample("x", image, Target(boxes=np.array([[8, 8, 40, 40]], np.float32), box_classes=np.array([1])),
                 size=(64, 64), view=(0.0, 0.0, 64.0, 64.0))  # fmt: skip
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(6):
        loss = detection.loss(network.train(), detection.batch([one, one]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] * 0.7


def test_boxes_and_masks_move_together() -> None:
    """Flips and turns: the box of the moved mask is the moved box."""
    rng = np.random.default_rng(0)
    look = Augmentation(flip="both", turn=True)
    for _ in range(40):
        x, y = rng.integers(0, 40, 2)
        width, height = rng.integers(2, 20, 2)
        mask = np.zeros((64, 64), np.uint8)
        mask[y : y + height, x : x + width] = 1
        target = Target(boxes=np.array([[x, y, x + width, y + height]], np.float32), box_classes=np.zeros(1), mask=mask)
        pixels, moved = _flipped(np.repeat(mask[..., None], 3, axis=2), target, look, rng)
        assert moved.mask is not None
        assert np.array_equal(pixels[..., 0], moved.mask)
        rows, columns = np.flatnonzero(moved.mask.any(axis=1)), np.flatnonzero(moved.mask.any(axis=0))
        assert moved.boxes[0].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_evaluation_needs_no_pixels() -> None:
    shown = np.broadcast_to(np.uint8(0), (64, 64, 3))
    target = Target(boxes=np.array([[0, 0, 32, 32]], np.float32), box_classes=np.array([0]))
    one = Sample("x", shown, target, size=(128, 128), view=(0.0, 0.0, 128.0, 128.0))
    box = {"label": "a", "score": 0.9, "x": 0.0, "y": 0.0, "width": 64.0, "height": 64.0}
    assert Detection().evaluate([one], [Prediction("x", boxes=[box])], ["a"])["map_50"] == pytest.approx(1.0)
