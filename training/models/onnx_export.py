"""A model as an ONNX file for other runtimes, kept only when it answers as torch does.

The graph begins at the prepared square (uint8 RGB), or at an embedder's vector, and ends at numbers that need no
lakeloop to be read: probabilities, or boxes with their probabilities. `model.json` beside it says the rest: classes,
how a square is made of an image, what is to be done with the outputs, and how far they were off when both were run on
real images of the lake. docs/cards.md has an example. torchvision's detectors are refused: they suppress boxes within
the network, box by box, which the exporter cannot follow.
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
# Real images, or vectors, that both are asked about.
IMAGES, VECTORS = 16, 256
MEASURE = "the largest |onnx - torch| / (1 + |torch|) of any number"

# (output's name -> array) of the same inputs
Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class ExportedModel:
    """A file that was checked: its outputs for `checked_on` real images (or vectors) were off by `difference` at most,
    as MEASURE has it.
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
    """Writes model.onnx and model.json of NAME@V, a run, or a model's promoted, else newest, run.

    What is there of these names is replaced once the new file was checked. Raises BadInput when there is no such model
    or it cannot be said in ONNX, CouldNot when its answers differ from torch's by more than `tolerance` or there is no
    image to compare them on, MissingExtra without the extra onnx; nothing is written then.
    """
    if not 0 < tolerance < 1:
        raise BadInput(f"a tolerance of {tolerance:g}: it lies between 0 and 1")
    require("onnx", "onnx", "onnx")
    loaded = trained_model.load(lake, name)
    run = loaded.run
    if isinstance(loaded, ProbeModel):
        inputs, expected = _vectors(lake, loaded)
        graph = _probe_graph(loaded)
        facts = onnx_metadata.of_probe(lake, loaded)
    else:
        assert isinstance(loaded, NetworkModel)
        network = _ending(loaded)
        inputs = _squares(lake, loaded)
        graph = _network_graph(loaded, network)
        expected = _torch_outputs(network, inputs)
        facts = onnx_metadata.of_network(loaded)
    with_ = "vectors" if isinstance(loaded, ProbeModel) else "images"
    difference = compare(graph, next(iter(facts["input"])), inputs, expected)
    if not difference <= tolerance:
        raise CouldNot(
            f"the ONNX file of run {run.id} answers otherwise than torch: off by {difference:.1e} on {len(inputs)} "
            f"{with_}, {tolerance:g} is allowed; nothing was kept"
        )
    version = next((one.id for one in versions.list(lake, run.model) if one.run == run.id), None)
    digest = hashlib.sha256(graph).hexdigest()
    said = {"format": 1, "model": run.model, "version": version, "run": run.id, "task": run.task, "kind": run.kind}
    said |= {"classes": [*loaded.classes], **facts, "opset": OPSET}
    said["file"] = {"name": MODEL, "sha256": digest, "bytes": len(graph)}
    said["checked"] = {"on": len(inputs), "what": with_, "measure": MEASURE, "allowed": tolerance, "found": difference}
    said["made_with"] = _versions()
    _write(folder, {MODEL: graph, FACTS: (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()})
    place = str(folder / MODEL)
    return ExportedModel(
        version or run.id, run.id, place, digest, len(graph), len(inputs), with_, difference, tolerance
    )


def compare(graph: bytes, name: str, inputs: np.ndarray, expected: Outputs) -> float:
    """How far onnxruntime's outputs are off, as MEASURE has it, of all inputs at once and of the first by itself;
    infinite when an output is missing, of another shape, or no number.
    """
    runtime = require("onnxruntime", "onnxruntime", "onnx")
    try:
        session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        worst = 0.0
        for some in (slice(None), slice(0, 1)):
            found = dict(
                zip((o.name for o in session.get_outputs()), session.run(None, {name: inputs[some]}), strict=True)
            )
            for key, right in expected.items():
                if key not in found or found[key].shape != right[some].shape:
                    return math.inf
                off = np.abs(found[key].astype(np.float64) - right[some]) / (1.0 + np.abs(right[some]))
                worst = max(worst, float(off.max(initial=0.0)) if np.isfinite(off).all() else math.inf)
        return worst
    except Exception as error:  # onnxruntime has an exception of its own for each status
        raise CouldNot(f"onnxruntime cannot run the exported file: {_first_line(error)}") from error


# Networks ----------------------------------------------------------------------------------------------------------


def _ending(loaded: NetworkModel) -> Any:
    """The network, ended in numbers that mean something by themselves."""
    architecture = str(loaded.run.settings["architecture"])
    if loaded.run.task == "detection" and architecture not in detection.COMPACT:
        raise BadInput(
            f"{architecture} cannot be exported to ONNX: torchvision's detectors suppress boxes within the network; "
            f"train {' or '.join(detection.COMPACT)} for that"
        )
    torch = torch_import.torch()

    class Probabilities(torch.nn.Module):  # type: ignore[misc,name-defined]
        """Of the classes (n, classes), of all pixels (n, 1 + classes, side, side), or of all points, with boxes."""

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
    """(n, 4, rows, columns): left, top, right, bottom in the square's pixels, of distances from the points' middles."""
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
        # The exporter warns of what its own parts are about to change.
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
    except Exception as error:  # whatever torch, onnxscript or protobuf cannot do
        what = loaded.run.settings["architecture"]
        raise CouldNot(f"torch cannot export {what} to ONNX: {_first_line(error)}") from error


def _squares(lake: Lake, loaded: NetworkModel) -> np.ndarray:
    """uint8 (n, 3, side, side): images of the run's splits, prepared."""
    found = []
    for stored in blobs.images(lake, _names(lake, loaded)[: 4 * IMAGES]):
        try:
            image = decode.pixels(decode.open_image(stored.data))
        except UnreadableImage:
            continue
        found.append(whole(stored.image_id, image, loaded.preparation).image.transpose(2, 0, 1))
        if len(found) == IMAGES:
            break
    if not found:
        raise CouldNot(f"no image of run {loaded.run.id} can be read any more: there is nothing to compare answers on")
    return np.ascontiguousarray(np.stack(found))


def _torch_outputs(network: Any, inputs: np.ndarray) -> Outputs:
    torch = torch_import.torch()
    with torch.no_grad():
        out = network(torch.from_numpy(inputs))
    names = _OUTPUTS[network.task]
    return {
        name: one.double().numpy() for name, one in zip(names, out if isinstance(out, tuple) else (out,), strict=True)
    }


# Probes ------------------------------------------------------------------------------------------------------------


def _probe_graph(loaded: ProbeModel) -> bytes:
    """softmax((relu(x W1 + b1)) W2 + b2), the temperature divided into the last layer."""
    onnx = require("onnx", "onnx", "onnx")
    helper, kind, probe = onnx.helper, onnx.TensorProto.FLOAT, loaded.probe
    layers = [*([probe.hidden] if probe.hidden is not None else [])]
    layers.append((probe.weights / loaded.temperature, probe.bias / loaded.temperature))
    nodes, kept, before = [], [], "vectors"
    for k, (weights, bias) in enumerate(layers):
        last = k == len(layers) - 1
        for name, array in ((f"weights_{k}", weights), (f"bias_{k}", bias)):
            kept.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
        nodes.append(helper.make_node("Gemm", [before, f"weights_{k}", f"bias_{k}"], [f"sums_{k}"]))
        before = "probabilities" if last else f"units_{k}"
        how: dict[str, Any] = {"axis": 1} if last else {}
        nodes.append(helper.make_node("Softmax" if last else "Relu", [f"sums_{k}"], [before], **how))
    dim = len(layers[0][0])
    given = helper.make_tensor_value_info("vectors", kind, ["batch", dim])
    made = helper.make_tensor_value_info("probabilities", kind, ["batch", len(probe.classes)])
    graph = helper.make_graph(nodes, "probe", [given], [made], kept)
    # The version of the file format that belongs to the operators: a newer one would keep older runtimes out.
    whole_model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(whole_model, full_check=True)
    return bytes(whole_model.SerializeToString())


def _vectors(lake: Lake, loaded: ProbeModel) -> tuple[np.ndarray, Outputs]:
    """Vectors float32 (n, dim) of the run's images, and the probe's own probabilities for them."""
    from embeddings.embedders.embedder import record_of
    from lake.storage.vectors import image_vectors

    names, found = image_vectors(lake, record_of(lake, loaded.embedder), _names(lake, loaded)[:VECTORS])
    if not len(names):
        raise CouldNot(f"no image of run {loaded.run.id} has a {loaded.embedder} vector any more to compare answers on")
    place = {name: k for k, name in enumerate(loaded.classes)}
    right = np.zeros((len(names), len(place)))
    for row, answer in enumerate(loaded.predictions_from_vectors(names, found)):
        for label, score in answer.scores:
            right[row, place[label]] = score
    return np.asarray(found, np.float32), {"probabilities": right}


# ----------------------------------------------------------------------------------------------------------


def _names(lake: Lake, loaded: NetworkModel | ProbeModel) -> list[str]:
    """Images of the run's splits, those it did not learn from first."""
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
