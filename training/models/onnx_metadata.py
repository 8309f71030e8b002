"""The contents of `model.json` next to an exported model: how its input is made, and what its outputs mean."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from training.tasks import detection

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.models.trained_model import NetworkModel, ProbeModel


def of_network(loaded: NetworkModel) -> dict[str, Any]:
    """For a network: input, preprocessing, output, postprocessing, and a detector's thresholds."""
    side, geometry, task = loaded.preparation.side, loaded.preparation.geometry, loaded.run.task
    shown = "its centre square" if geometry == "crop" else "the whole image, both sides squeezed"
    facts: dict[str, Any] = {
        "input": {
            "images": {"type": "uint8", "shape": ["batch", 3, side, side], "is": "RGB, 0 to 255, not normalised"}
        },
        "preprocessing": {
            "side": side,
            "geometry": geometry,
            "interpolation": "bilinear",
            "steps": [
                "turn the image upright by its EXIF orientation, make it RGB",
                f"take {shown}, resize it to {side} x {side} with Pillow's bilinear filter",
                "put the channels first; the network normalises them itself",
            ],
        },
    }
    if task == "classification":
        means = {"probabilities": "float32 (batch, classes): of each class, calibrated; rows add up to 1"}
        return facts | {"output": means, "postprocessing": ["the class with the highest probability is the prediction"]}
    if task == "segmentation":
        means = {"probabilities": f"float32 (batch, 1 + classes, {side}, {side}): of background, then of each class"}
        steps = ["resize to the part of the image that was shown", "each pixel is what has its highest probability"]
        return facts | {"output": means, "postprocessing": steps}
    means = {
        "probabilities": "float32 (batch, classes, rows, columns): that a thing of the class has its middle there",
        "boxes": "float32 (batch, 4, rows, columns): left, top, right, bottom in pixels of the square, one box a point",
    }
    steps = [
        "keep points whose probability is the highest among their eight neighbours of the same class",
        f"of these the {detection.MOST_BOXES} highest, from {detection.SCORE_FROM:g} on",
        f"of two boxes of a class that overlap by more than {detection.OVERLAP:g} (IoU) drop the less probable",
        "stretch the boxes from the square to the part of the image that was shown",
    ]
    numbers = {"score_from": detection.SCORE_FROM, "most_boxes": detection.MOST_BOXES, "overlap": detection.OVERLAP}
    return facts | {"output": means, "postprocessing": steps, "thresholds": numbers}


def of_probe(lake: Lake, loaded: ProbeModel) -> dict[str, Any]:
    """For a probe: the same, with the embedder of its vectors."""
    from embeddings.embedders.embedder import record_of

    record = record_of(lake, loaded.embedder)
    embedder = {
        "name": record.name,
        "weights": record.weights,
        "weights_sha256": record.weights_sha256,
        "preprocessing": json.loads(record.preprocessing) if record.preprocessing else None,
    }
    shape = ["batch", len(loaded.probe.weights if loaded.probe.hidden is None else loaded.probe.hidden[0])]
    return {
        "input": {"vectors": {"type": "float32", "shape": shape, "is": "the embedder's vectors, of length 1"}},
        "preprocessing": {"embedder": embedder, "steps": [f"embed the image with {record.name}, divide by its length"]},
        "output": {"probabilities": "float32 (batch, classes): of each class, calibrated; rows add up to 1"},
        "postprocessing": ["the class with the highest probability is the prediction"],
    }
