"""Exports a model as an ONNX file for other runtimes, if it predicts the same as torch.

The graph begins at the prepared square (uint8 RGB) or at an embedder's vector. Its outputs can be read without
lakeloop: probabilities, or boxes with their probabilities. `model.json` next to it has the rest: the classes, how to
prepare an image, what to do with the outputs, and how far both runtimes differed on real images of the lake.
docs/cards.md has an example. torchvision's detectors are refused: they suppress boxes inside the network, which the
exporter cannot follow.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings.embedders import torch_import
from lake.errors import BadInput, CouldNot, UnreadableImage
from lake.extras import require
from lake.images import decode
from lake.storage import blobs
from training.data.augmentation import whole
from training.models import onnx_metadata, trained_model
from training.models.trained_model import NetworkModel, ProbeModel
from training.registry import runs, versions
from training.tasks import detection

if TYPE_CHECKING:
    from lake.storage.store import Lake

MODEL, FACTS = "model.onnx", "model.json"
OPSET = 18
TOLERANCE = 1e-4
# Real images, or vectors, that both runtimes are compared on.
IMAGES, VECTORS = 16, 256
MEASURE = "the largest |onnx - torch| / (1 + |torch|) of any number"

# Arrays by the name of the output.
Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class ExportedModel:
    """A checked file: its outputs for `checked_on` real images (or vectors) differ from torch's by at most `difference`
    (see MEASURE).
    """

    name: str
    run: str
    path: str
    sha256: str
    bytes: int
    checked_on: int
    checked_with: str
    difference: float
    tolerance: float


def export(lake: Lake, name: str, folder: Path, *, tolerance: float = TOLERANCE) -> ExportedModel:
    """Writes model.onnx and model.json of NAME@V, of a run, or of a model's promoted, else newest, run.

    Existing files of these names are replaced after the check. Raises BadInput if there is no such model or it cannot
    be exported, CouldNot if its outputs differ from torch's by more than `tolerance` or there is no image to compare
    them on, MissingExtra without the extra onnx. It then writes nothing.
    """
    if not 0 < tolerance < 1:
        raise BadInput(f"the tolerance is {tolerance:g}; it must lie between 0 and 1")
    require("onnx", "onnx", "onnx")
    loaded = trained_model.load(lake, name)
    run = loaded.run
    if isinstance(loaded, ProbeModel):
        inputs, expected = _vectors(lake, loaded)
        graph = _probe_graph(loaded)
        facts = onnx_metadata.of_probe(lake, loaded)
    else:
        assert isinstance(loaded, NetworkModel)
        network = _with_outputs(loaded)
        inputs = _squares(lake, loaded)
        graph = _network_graph(loaded, network)
        expected = _torch_outputs(network, inputs)
        facts = onnx_metadata.of_network(loaded)
    kind = "vectors" if isinstance(loaded, ProbeModel) else "images"
    difference = compare(graph, next(iter(facts["input"])), inputs, expected)
    if not difference <= tolerance:
        raise CouldNot(
            f"the ONNX file of run {run.id} does not predict the same as torch: it differs by {difference:.1e} on "
            f"{len(inputs)} {kind}, {tolerance:g} is allowed; nothing was written"
        )
    version = next((version.id for version in versions.list(lake, run.model) if version.run == run.id), None)
    digest = hashlib.sha256(graph).hexdigest()
    metadata = {"format": 1, "model": run.model, "version": version, "run": run.id, "task": run.task, "kind": run.kind}
    metadata |= {"classes": [*loaded.classes], **facts, "opset": OPSET}
    metadata["file"] = {"name": MODEL, "sha256": digest, "bytes": len(graph)}
    metadata["checked"] = {
        "on": len(inputs),
        "what": kind,
        "measure": MEASURE,
        "allowed": tolerance,
        "found": difference,
    }
    metadata["made_with"] = _versions()
    _write(folder, {MODEL: graph, FACTS: (json.dumps(metadata, indent=2, ensure_ascii=False) + "\n").encode()})
    path = str(folder / MODEL)
    return ExportedModel(version or run.id, run.id, path, digest, len(graph), len(inputs), kind, difference, tolerance)


def compare(graph: bytes, name: str, inputs: np.ndarray, expected: Outputs) -> float:
    """The largest difference (see MEASURE) of onnxruntime's outputs from `expected`, for all inputs at once and for the
    first input alone; infinite if an output is missing, of another shape, or not finite.
    """
    runtime = require("onnxruntime", "onnxruntime", "onnx")
    try:
        session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        worst = 0.0
        for part in (slice(None), slice(0, 1)):
            outputs = dict(
                zip((o.name for o in session.get_outputs()), session.run(None, {name: inputs[part]}), strict=True)
            )
            for key, array in expected.items():
                if key not in outputs or outputs[key].shape != array[part].shape:
                    return math.inf
                differences = np.abs(outputs[key].astype(np.float64) - array[part]) / (1.0 + np.abs(array[part]))
                finite = np.isfinite(differences).all()
                worst = max(worst, float(differences.max(initial=0.0)) if finite else math.inf)
        return worst
    except Exception as error:  # onnxruntime has an own exception for each status
        raise CouldNot(f"onnxruntime cannot run the exported file: {_first_line(error)}") from error


# Networks ----------------------------------------------------------------------------------------------------------


def _with_outputs(loaded: NetworkModel) -> Any:
    """The network with outputs that can be read without lakeloop: probabilities and boxes."""
    architecture = str(loaded.run.settings["architecture"])
    if loaded.run.task == "detection" and architecture not in detection.COMPACT:
        raise BadInput(
            f"{architecture} cannot be exported to ONNX: torchvision's detectors suppress boxes inside the network; "
            f"train {' or '.join(detection.COMPACT)} instead"
        )
    torch = torch_import.torch()

    class Probabilities(torch.nn.Module):  # type: ignore[misc,name-defined]
        """Of classes (n, classes), of pixels (n, 1 + classes, side, side), or of points, with boxes."""

        def __init__(self) -> None:
            super().__init__()
            self.network, self.task = loaded.network, loaded.run.task

        def forward(self, images: Any) -> Any:
            out = self.network(images)
            if self.task == "classification":
                return (out / self.network.temperature).softmax(dim=1)
            if self.task == "segmentation":
                return out["out"].softmax(dim=1)
            return out["heat"].sigmoid(), _corners(out["distances"])

    return Probabilities().eval()


def _corners(distances: Any) -> Any:
    """(n, 4, rows, columns): left, top, right, bottom in the square's pixels, from distances to the points' middles."""
    from training.networks.compact_networks import POINT_STRIDE

    torch = torch_import.torch()
    rows, columns = distances.shape[2:]
    x = ((torch.arange(columns) + 0.5) * POINT_STRIDE).expand(rows, columns)
    y = ((torch.arange(rows) + 0.5) * POINT_STRIDE)[:, None].expand(rows, columns)
    middle = torch.stack([x, y])
    return torch.cat([middle - distances[:, :2], middle + distances[:, 2:]], dim=1)


_OUTPUTS = {
    "classification": ("probabilities",),
    "segmentation": ("probabilities",),
    "detection": ("probabilities", "boxes"),
}


def _network_graph(loaded: NetworkModel, network: Any) -> bytes:
    require("onnxscript", "onnxscript", "onnx")
    torch = torch_import.torch()
    side = loaded.preparation.side
    example = torch.zeros((2, 3, side, side), dtype=torch.uint8)
    try:
        # The exporter warns about deprecations in its own parts.
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=[*_OUTPUTS[loaded.run.task]],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                verbose=False,
            )
        return bytes(program.model_proto.SerializeToString())
    except Exception as error:  # torch, onnxscript and protobuf raise errors of many kinds
        architecture = loaded.run.settings["architecture"]
        raise CouldNot(f"torch cannot export {architecture} to ONNX: {_first_line(error)}") from error


def _squares(lake: Lake, loaded: NetworkModel) -> np.ndarray:
    """uint8 (n, 3, side, side): images of the run's splits, prepared."""
    squares = []
    for stored in blobs.images(lake, _names(lake, loaded)[: 4 * IMAGES]):
        try:
            image = decode.pixels(decode.open_image(stored.data), levels=stored.levels)
        except UnreadableImage:
            continue
        squares.append(whole(stored.image_id, image, loaded.preparation).image.transpose(2, 0, 1))
        if len(squares) == IMAGES:
            break
    if not squares:
        raise CouldNot(
            f"no image of run {loaded.run.id} can be read any more: there is nothing to compare the outputs on"
        )
    return np.ascontiguousarray(np.stack(squares))


def _torch_outputs(network: Any, inputs: np.ndarray) -> Outputs:
    torch = torch_import.torch()
    with torch.no_grad():
        out = network(torch.from_numpy(inputs))
    names = _OUTPUTS[network.task]
    return {
        name: tensor.double().numpy()
        for name, tensor in zip(names, out if isinstance(out, tuple) else (out,), strict=True)
    }


# Probes ------------------------------------------------------------------------------------------------------------


def _probe_graph(loaded: ProbeModel) -> bytes:
    """softmax((relu(x W1 + b1)) W2 + b2); the last layer is divided by the temperature."""
    onnx = require("onnx", "onnx", "onnx")
    helper, kind, probe = onnx.helper, onnx.TensorProto.FLOAT, loaded.probe
    layers = [*([probe.hidden] if probe.hidden is not None else [])]
    layers.append((probe.weights / loaded.temperature, probe.bias / loaded.temperature))
    nodes, tensors, layer_input = [], [], "vectors"
    for k, (weights, bias) in enumerate(layers):
        last = k == len(layers) - 1
        for name, array in ((f"weights_{k}", weights), (f"bias_{k}", bias)):
            tensors.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
        nodes.append(helper.make_node("Gemm", [layer_input, f"weights_{k}", f"bias_{k}"], [f"sums_{k}"]))
        output = "probabilities" if last else f"units_{k}"
        attributes: dict[str, Any] = {"axis": 1} if last else {}
        nodes.append(helper.make_node("Softmax" if last else "Relu", [f"sums_{k}"], [output], **attributes))
        layer_input = output
    dim = len(layers[0][0])
    graph_input = helper.make_tensor_value_info("vectors", kind, ["batch", dim])
    graph_output = helper.make_tensor_value_info("probabilities", kind, ["batch", len(probe.classes)])
    graph = helper.make_graph(nodes, "probe", [graph_input], [graph_output], tensors)
    # The file format version of these operators: older runtimes refuse a newer one.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _vectors(lake: Lake, loaded: ProbeModel) -> tuple[np.ndarray, Outputs]:
    """Vectors float32 (n, dim) of the run's images, and the probe's own probabilities for them."""
    from embeddings.embedders.embedder import record_of
    from lake.storage.vectors import image_vectors

    names, vectors = image_vectors(lake, record_of(lake, loaded.embedder), _names(lake, loaded)[:VECTORS])
    if not len(names):
        raise CouldNot(
            f"no image of run {loaded.run.id} has a {loaded.embedder} vector any more to compare the outputs on"
        )
    column = {name: k for k, name in enumerate(loaded.classes)}
    probabilities = np.zeros((len(names), len(column)))
    for row, prediction in enumerate(loaded.predictions_from_vectors(names, vectors)):
        for label, score in prediction.scores:
            probabilities[row, column[label]] = score
    return np.asarray(vectors, np.float32), {"probabilities": probabilities}


# ----------------------------------------------------------------------------------------------------------


def _names(lake: Lake, loaded: NetworkModel | ProbeModel) -> list[str]:
    """Images of the run's splits; first those that it did not train on."""
    table = trained_model.read_items(runs.folder(lake, loaded.run.id))
    order = {"test": 0, "validation": 1, "protected": 2}
    pairs = zip(table["use"].to_pylist(), table["image_id"].to_pylist(), strict=True)
    return [*dict.fromkeys(name for _, name in sorted((order.get(use, 3), name) for use, name in pairs))]


def _versions() -> dict[str, str]:
    from importlib import metadata

    from lake.version import VERSION

    packages: Sequence[str] = ("torch", "onnx", "onnxruntime")
    return {"lakeloop": VERSION} | {package: metadata.version(package) for package in packages}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / f"{name}.part").write_bytes(content)
        for name in files:
            os.replace(folder / f"{name}.part", folder / name)
    except OSError as error:
        raise BadInput(f"cannot write into {folder}: {error.strerror or error}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
