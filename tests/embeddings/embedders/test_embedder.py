"""The seam: by name, by file, by entry point; never vectors of different weights in one column."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from embeddings.backfill.backfill import backfill
from embeddings.embedders import embedder as embedders
from embeddings.embedders import specs, torch_import
from embeddings.embedders.embedder import NetworkEmbedder, TextEmbedder, for_lake, load, record_of
from embeddings.embedders.engine import unit
from lake.errors import BadInput, HubUnreachable, WeightsMismatch
from lake.ingest import ingest
from lake.open_lake import OpenLake
from tests import pictures
from tests.conftest import MakeLake
from tests.embeddings.colour import MeanColour

torch = torch_import.torch()
vision = torch_import.torchvision()


@pytest.fixture(scope="module")
def resnets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two resnet18 with random weights, as safetensors."""
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        paths.append(tmp_path_factory.mktemp("weights") / f"net{seed}.safetensors")
        save_file(vision.models.resnet18(weights=None).state_dict(), paths[-1])
    return paths


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a network and with empty caches."""

    def refused(*arguments: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_an_unreachable_hub_names_the_ways_out(name: str) -> None:
    with pytest.raises(HubUnreachable) as caught:
        load(name)
    assert caught.value.exit_code == 3
    for word in (name, "Network is unreachable", "--weights FILE", "--embedder efficientnet-lite0", f"put {name}-"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vgg", "no embedder 'vgg'; known: efficientnet-lite0, resnet18"),
        ("resnet18@", "write a name after the @"),
        ("open_clip:ViT-B-16", "write open_clip:ARCH/PRETRAINED"),
        ("open_clip:NoNet/laion", "open_clip has no architecture 'NoNet'"),
        ("open_clip:ViT-B-16/nowhere", "open_clip has no weights 'nowhere' for ViT-B-16"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        load(name)


@pytest.mark.usefixtures("installed")
def test_a_users_own_embedder_is_found_by_its_entry_point(tmp_path: Path) -> None:
    own = load("mean-colour")
    assert isinstance(own, MeanColour)
    assert not isinstance(own, TextEmbedder)
    assert load("mean-colour@other").spec.name == "mean-colour"
    with pytest.raises(BadInput, match="takes no --weights"):
        load("mean-colour", file=tmp_path / "x.safetensors")


def test_every_spec_is_complete() -> None:
    for name, spec in specs.SPECS.items():
        assert spec.name == name
        assert spec.licence
        assert spec.weights
        assert spec.dim > 0
        assert spec.preprocessing is not None


def test_efficientnet_works_without_a_network(offline: None) -> None:
    assert NetworkEmbedder("efficientnet-lite0", engine="torch").spec.dim == 1280


def test_other_weights_under_the_same_name_are_refused(
    make_lake: MakeLake, resnets: list[Path], tmp_path: Path
) -> None:
    """A second set of weights gets a name and a column of its own: resnet18@tuned."""
    lk = make_lake(embedders=["resnet18"])
    pictures.folder(tmp_path / "in", 2)
    ingest.ingest(lk, tmp_path / "in", workers=1)
    record = record_of(lk, None)
    backfill(lk, record, for_lake(lk, record, file=resnets[0], engine="torch"), file=resnets[0], workers=1)
    record = record_of(lk, None)
    with pytest.raises(WeightsMismatch, match=r"--embedder resnet18@NAME"):
        for_lake(lk, record, file=resnets[1], engine="torch")
    assert for_lake(lk, record, engine="torch").weights_sha256 == record.weights_sha256
    second = lk.register_embedder("resnet18@tuned")
    assert second.column == "emb_resnet18_tuned"
    backfill(lk, second, for_lake(lk, second, file=resnets[1], engine="torch"), file=resnets[1], workers=1)
    one, other = (np.stack(lk.scan("samples", [e.column])[e.column].to_pylist()) for e in lk.embedders())
    assert not np.allclose(one, other)


def test_a_file_for_another_network_is_refused(resnets: list[Path]) -> None:
    with pytest.raises(BadInput, match="do not fit this network"):
        load("resnet34", file=resnets[0])


def test_a_head_for_other_classes_is_taken_off(tmp_path: Path) -> None:
    torch.manual_seed(5)
    net = vision.models.resnet18(weights=None, num_classes=7)
    prints = []
    for change in (lambda s: s, lambda s: {k: v for k, v in s.items() if not k.startswith("fc.")}):
        save_file(change(net.state_dict()), tmp_path / "net.safetensors")
        prints.append(load("resnet18", file=tmp_path / "net.safetensors", engine="torch").weights_sha256)
    assert prints[0] == prints[1]


def test_a_batch_of_any_size_gives_the_same_vectors(resnets: list[Path]) -> None:
    net = load("resnet18", file=resnets[0], engine="torch")
    images = np.random.default_rng(0).integers(0, 256, (19, 224, 224, 3), np.uint8)
    whole = net.embed_batch(list(images))
    assert whole.vectors.shape == (19, 512)
    assert whole.vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(whole.vectors, axis=1), 1, atol=1e-6)
    assert whole.kept.tolist() == list(range(19))
    assert np.allclose(net.embed_batch(list(images[17:])).vectors, whole.vectors[17:], atol=1e-5)
    assert net.embed_batch([]).vectors.shape == (0, 512)


def test_vectors_that_are_not_finite_are_dropped(resnets: list[Path]) -> None:
    net: Any = load("resnet18", file=resnets[0], engine="torch")
    engine = net.engine

    def sometimes(images: np.ndarray) -> np.ndarray:
        vectors: np.ndarray = engine(images)
        vectors[1] = np.nan
        return vectors

    net.engine = sometimes
    net.engine.batch = 16
    out = net.embed_batch(list(np.zeros((3, 224, 224, 3), np.uint8)))
    assert out.kept.tolist() == [0, 2]
    assert np.isfinite(out.vectors).all()


def test_unit_makes_length_one_or_nan() -> None:
    out = unit(np.array([[3.0, 4.0], [0.0, 0.0], [np.inf, 1.0]]))
    assert out[0].tolist() == pytest.approx([0.6, 0.8])
    assert np.isnan(out[1:]).all()


def test_an_embedder_of_images_refuses_text(resnets: list[Path]) -> None:
    with pytest.raises(BadInput, match="embeds images only"):
        load("resnet18", file=resnets[0], engine="torch").embed_texts(["a cat"])  # type: ignore[attr-defined]


def test_an_unknown_engine_is_refused(resnets: list[Path]) -> None:
    with pytest.raises(BadInput, match="must be one of auto, torch, openvino"):
        load("resnet18", file=resnets[0], engine="tpu")  # type: ignore[arg-type]


def test_a_lake_without_embedders_says_what_to_run(lk: OpenLake) -> None:
    with pytest.raises(BadInput, match="lakeloop embed --embedder efficientnet-lite0"):
        embedders.record_of(lk, None)
