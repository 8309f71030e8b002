"""A model as ONNX: the file is run by onnxruntime on real images, and is kept only when it answers as torch does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from embeddings.backfill.vector_columns import store_vectors
from embeddings.embedders import torch_import
from lake import ids, open_lake
from lake.errors import BadInput, CouldNot
from lake.open_lake import OpenLake
from search_app.cli import main
from tests.training.conftest import striped, stripes
from training.data import splits
from training.data.augmentation import Preparation, whole
from training.fit import train_model
from training.models import onnx_export, trained_model
from training.models.trained_model import NetworkModel, ProbeModel
from training.registry import runs
from training.registry.recipe import Recipe
from training.tasks import task_registry
from training.tasks.detection import Detection

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> OpenLake:
    """Striped pictures with vectors, and runs: a probe, one with a hidden layer, and a small network as it began."""
    place = str(tmp_path_factory.mktemp("onnx") / "lake")
    open_lake.create(place, embedders=["random"])
    lake = open_lake.open(place)
    names = striped(lake, "first", 32)
    record = lake.register_embedder("random")
    lake.bind_embedder(replace(record, dim=12, weights_sha256="d" * 64))
    rng = np.random.default_rng(0)
    found = rng.normal(size=(len(names), 12))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    store_vectors(lake, record.column, dict(zip(names, found.astype(np.float32), strict=True)))
    for hidden, name in ((0, "linear"), (5, "layered")):
        train_model.train(lake, train=["first"], recipe=Recipe(kind="probe", hidden=hidden), name=name)
    made = network_of("segmentation", "unet-small", 32)
    recipe = Recipe(task="segmentation", architecture="unet-small", pretrained=False, size=32)
    run = runs.create(lake, "net", recipe, data={}, classes=["a", "b"])
    folder = runs.folder(lake, run.id)
    items = splits.gather(lake, "classification", train=["first"]).items
    trained_model.begin(folder, recipe, items, made.network, [], warm=False)
    trained_model.save(folder, made.network, recipe, run.classes, made.preparation)
    runs.end(lake, run, "done", artifacts={"model": runs.artifact(lake, folder / trained_model.MODEL)})
    return lake


def asked(file: Path, inputs: np.ndarray) -> list[np.ndarray]:
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: inputs})
    return outputs


@pytest.mark.parametrize("name", ["linear", "layered"])
def test_an_exported_probe_predicts_the_same_from_vectors(lake: OpenLake, tmp_path: Path, name: str) -> None:
    made = onnx_export.export(lake, name, tmp_path)
    assert made.difference < 1e-6
    loaded = trained_model.load(lake, name)
    assert isinstance(loaded, ProbeModel)
    vectors = np.random.default_rng(3).normal(size=(7, 12)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (said,) = asked(tmp_path / "model.onnx", vectors)
    for row, prediction in zip(said, loaded.predictions_from_vectors([str(k) for k in range(7)], vectors), strict=True):
        assert dict(prediction.scores) == pytest.approx(dict(zip(loaded.classes, row.tolist(), strict=True)), abs=1e-5)
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["classes"] == ["lying", "upright"]
    assert facts["preprocessing"]["embedder"]["name"] == "random"
    assert (facts["checked"]["what"], facts["checked"]["on"]) == ("vectors", 32)


def test_a_network_by_the_command_and_its_refusal(
    lake: OpenLake, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net"
    said = ["models", "export", "net", "--lake", lake.uri]
    assert main.main([*said, "--onnx", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    facts = json.loads((out / "model.json").read_text())
    assert told["sha256"] == facts["file"]["sha256"] == ids.image_id((out / "model.onnx").read_bytes())
    assert told["checked_on"] == facts["checked"]["on"] == 16
    assert told["difference"] == facts["checked"]["found"] < 1e-5
    assert sorted(p.name for p in out.iterdir()) == ["model.json", "model.onnx"]

    # What model.json says of the input is enough: pictures that nobody has seen get the network's answers.
    loaded = trained_model.load(lake, "net")
    assert isinstance(loaded, NetworkModel)
    side = facts["preprocessing"]["side"]
    squares = np.stack(
        [np.asarray(stripes(n, True).resize((side, side), 2)).transpose(2, 0, 1) for n in range(900, 905)]
    )
    (found,) = asked(out / "model.onnx", squares)
    torch = torch_import.torch()
    with torch.no_grad():
        right = loaded.network(torch.from_numpy(squares))["out"].softmax(1).numpy()
    assert found.shape == (5, 1 + len(facts["classes"]), side, side)
    assert np.abs(found - right).max() < 1e-5

    # The same file with one number changed is refused, and what is there stays.
    proto = onnx.load(str(out / "model.onnx"))
    bias = next(one for one in proto.graph.initializer if one.name.endswith("classifier.bias"))
    off = onnx.numpy_helper.to_array(bias) + np.float32(0.01) * np.arange(12, dtype=np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(off, bias.name))
    wrong = proto.SerializeToString()
    monkeypatch.setattr(onnx_export, "_network_graph", lambda *_: wrong)
    kept = (out / "model.onnx").read_bytes()
    with pytest.raises(CouldNot, match=r"does not predict the same as torch: it differs by .* nothing was written"):
        onnx_export.export(lake, "net", out)
    assert (out / "model.onnx").read_bytes() == kept
    with pytest.raises(CouldNot, match="does not predict the same"):
        onnx_export.export(lake, "net", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert onnx_export.export(lake, "net", tmp_path / "new", tolerance=0.1).difference > 1e-4
    monkeypatch.setattr(onnx_export, "_network_graph", lambda *_: wrong[: len(wrong) // 2])
    with pytest.raises(CouldNot, match="onnxruntime cannot run the exported file"):
        onnx_export.export(lake, "net", tmp_path / "half")

    assert main.main([*said, "--out", str(out)]) == 2
    assert "give --onnx" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refusal:
        main.main([*said, "--onnx", "--out", str(out), "--tolerance", "nan"])
    assert refusal.value.code == 2


@pytest.mark.parametrize(
    ("found", "off"),
    [
        ([[0.5, 0.5]], 0.0),
        ([[0.5, 0.65]], 0.1),
        ([[0.5, float("nan")]], float("inf")),
        ([[0.5, 0.5, 0.0]], float("inf")),
    ],
)
def test_differences(found: list[list[float]], off: float) -> None:
    """A graph that says the same whatever it is asked, beside what is right: 0.15 off 0.5 is 0.1 of 1 + 0.5."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    array = np.array(found, np.float32)
    zero = onnx.numpy_helper.from_array(np.zeros((1, array.shape[1]), np.float32), "zero")
    kept = [zero, onnx.numpy_helper.from_array(array, "said")]
    nodes = [
        helper.make_node("MatMul", ["x", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "said"], ["y"]),
    ]
    given = [helper.make_tensor_value_info("x", kind, ["n", 1])]
    made = [helper.make_tensor_value_info("y", kind, ["n", array.shape[1]])]
    graph = helper.make_graph(nodes, "g", given, made, kept)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    right = {"y": np.full((3, 2), 0.5)}
    said = onnx_export.compare(proto.SerializeToString(), "x", np.ones((3, 1), np.float32), right)
    assert said == pytest.approx(off)
    assert onnx_export.compare(proto.SerializeToString(), "x", np.ones((3, 1), np.float32), {"z": np.ones(3)}) == np.inf


def network_of(name: str, architecture: str, side: int) -> NetworkModel:
    torch = torch_import.torch()
    torch.manual_seed(0)
    made = task_registry.get(name)
    network = made.network(architecture, ["a", "b"], pretrained=False)
    run: Any = SimpleNamespace(id="r", task=name, settings={"architecture": architecture}, classes=("a", "b"))
    return NetworkModel(run, network, made, Preparation(side, "squash", {"a": 0, "b": 1}))


def test_torchvisions_detectors_are_refused() -> None:
    run: Any = SimpleNamespace(task="detection", settings={"architecture": "ssdlite320_mobilenet_v3_large"})
    loaded: Any = SimpleNamespace(run=run)
    with pytest.raises(
        BadInput, match=r"cannot be exported to ONNX: torchvision's detectors suppress boxes .* centernet"
    ):
        onnx_export._with_outputs(loaded)


def test_corners_are_the_detectors_own() -> None:
    """The boxes of the graph, cut at the peaks, are what the task itself answers with."""
    torch = torch_import.torch()
    loaded = network_of("detection", "centernet-small", 64)
    torch.nn.init.normal_(loaded.network.heat[1].bias)  # warm enough to answer
    samples = [whole(str(n), stripes(n, True), loaded.preparation) for n in range(3)]
    images = Detection().batch(samples).images
    ending = onnx_export._with_outputs(loaded)
    with torch.no_grad():
        chances, boxes = ending(images)
        raw = loaded.network(images)
    assert chances.shape == (3, 2, 16, 16)
    for k, prediction in enumerate(Detection().predictions(loaded.network, samples, ("a", "b"))):
        assert prediction.boxes
        for box in prediction.boxes:
            apart = (chances[k] - box["score"]).abs()
            _, row, column = np.unravel_index(int(apart.argmin()), tuple(apart.shape))
            left, top, right, bottom = boxes[k, :, row, column].clamp(0, 64).tolist()
            scale = 40 / 64  # of the square to the picture
            assert [box["x"], box["y"]] == pytest.approx([left * scale, top * scale], abs=1e-3)
            assert box["width"] == pytest.approx((right - left) * scale, abs=1e-3)
            assert box["height"] == pytest.approx((bottom - top) * scale, abs=1e-3)
    assert raw["heat"].shape == chances.shape


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "architecture", "side"),
    [
        ("classification", "efficientnet-lite0", 64),
        ("classification", "resnet18", 64),
        ("classification", "clip-vit-b-32", 224),
        ("segmentation", "unet-small", 64),
        ("segmentation", "unet-lite0", 64),
        ("segmentation", "lraspp_mobilenet_v3_large", 64),
        ("segmentation", "deeplabv3_mobilenet_v3_large", 64),
        ("segmentation", "fcn_resnet50", 64),
        ("detection", "centernet-small", 64),
        ("detection", "centernet-lite0", 64),
    ],
)
def test_networks_of_every_task(name: str, architecture: str, side: int) -> None:
    loaded = network_of(name, architecture, side)
    squares = np.stack(
        [whole("", stripes(n, n % 2 == 0), loaded.preparation).image.transpose(2, 0, 1) for n in range(4)]
    )
    ending = onnx_export._with_outputs(loaded)
    graph = onnx_export._network_graph(loaded, ending)
    off = onnx_export.compare(graph, "images", squares, onnx_export._torch_outputs(ending, squares))
    assert off <= onnx_export.TOLERANCE
