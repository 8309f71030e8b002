"""The built-in networks are their publishers': the same files give the same vectors.

Random weights in the published formats stand in for the published ones, which no test can fetch.
"""

import hashlib
import importlib.util
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from embeddings.backfill.backfill import backfill
from embeddings.embedders import torch_import
from embeddings.embedders.embedder import Embedder, NetworkEmbedder, for_lake, record_of
from embeddings.embedders.networks import efficientnet_lite0_classifier
from embeddings.embedders.preprocess import prepare
from embeddings.search.search import search
from lake import ids
from lake.ingest import ingest
from lake.open_lake import OpenLake
from tests import pictures
from tests.conftest import MakeLake
from tests.pictures import encoded

PHOTOGRAPHS = Path(__file__).parents[4] / "shared" / "data" / "imagenet-samples-600.tar"
torch = torch_import.torch()
vision = torch_import.torchvision()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight scenes of odd sizes, as PNG and as JPEG small enough to be decoded whole."""
    folder = tmp_path_factory.mktemp("scenes")
    for i, (width, height) in enumerate([(300, 260), (261, 400), (333, 280), (290, 290)]):
        (folder / f"{i}.png").write_bytes(encoded(pictures.scene(i, width, height)))
        (folder / f"{i}.jpg").write_bytes(encoded(pictures.scene(9 + i, width, height), "JPEG", quality=92))
    return sorted(folder.iterdir())


def cosines(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    def rows(m: np.ndarray) -> np.ndarray:
        return m / np.linalg.norm(m, axis=1, keepdims=True)

    return (rows(image.astype(np.float64)) * rows(other.astype(np.float64))).sum(axis=1)


def publishers(network: Any, transform: Callable[[Image.Image], Any], images: list[Path]) -> np.ndarray:
    """The library's own model on its own preprocessing of the files, opened by Pillow."""
    batch = []
    for path in images:
        with Image.open(path) as image:
            batch.append(transform(image.convert("RGB")))
    with torch.inference_mode():
        out: np.ndarray = network(torch.stack(batch)).numpy()
    return out


def stored(lk: OpenLake, column: str, images: list[Path]) -> np.ndarray:
    rows = lk.scan("samples", ["image_id", column]).to_pylist()
    vectors = {row["image_id"]: row[column] for row in rows}
    return np.array([vectors[ids.image_id(path.read_bytes())] for path in images], np.float32)


def taken_in(lk: OpenLake, images: list[Path], file: Path, trust: str | None = None) -> Embedder:
    """ingest, then embed --weights FILE; then the embedder as a later command gets it, with no weights given."""
    ingest.ingest(lk, images[0].parent, workers=1)
    record = record_of(lk, None)
    model = for_lake(lk, record, file=file, trust_sha256=trust, engine="torch")
    report = backfill(lk, record, model, file=file, workers=2)
    assert (report.embedded, report.failed) == (len(images), 0)
    return for_lake(lk, record_of(lk, None), engine="torch")


@pytest.mark.parametrize("format", [pytest.param("pth", marks=pytest.mark.soak), "safetensors"])
@pytest.mark.parametrize(
    "name",
    ["resnet18", pytest.param("resnet34", marks=pytest.mark.soak), pytest.param("resnet50", marks=pytest.mark.soak)],
)
def test_a_resnet_is_torchvisions(
    make_lake: MakeLake, tmp_path: Path, images: list[Path], name: str, format: str
) -> None:
    torch.manual_seed(3)
    network = getattr(vision.models, name)(weights=None).eval()
    file, trust = tmp_path / f"{name}.{format}", None
    if format == "pth":
        torch.save(network.state_dict(), file)
        trust = hashlib.sha256(file.read_bytes()).hexdigest()
    else:
        save_file(network.state_dict(), file)
    lk = make_lake(embedders=[name])
    model = taken_in(lk, images, file, trust)
    network.fc = torch.nn.Identity()
    transform = vision.models.get_model_weights(name).DEFAULT.transforms()
    column = f"emb_{name}"
    assert cosines(stored(lk, column, images), publishers(network, transform, images)).min() >= 0.9999
    file.unlink()
    rows = search(lk, image=images[2], model=model, k=3)
    assert rows["source"][0].as_py() == str(images[2])
    assert rows["similarity"][0].as_py() == pytest.approx(1, abs=1e-4)
    assert lk.sql(f"SELECT count(*) AS n FROM samples WHERE len({column}) = {model.spec.dim}")["n"].to_pylist() == [8]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.soak) for name in ("resnet34", "resnet50")])
def test_the_larger_resnets_load(tmp_path: Path, images: list[Path], name: str) -> None:
    torch.manual_seed(4)
    network = getattr(vision.models, name)(weights=None).eval()
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    ours = NetworkEmbedder(name, tmp_path / "net.safetensors", engine="torch")
    network.fc = torch.nn.Identity()
    batch = np.stack([prepare(path.read_bytes(), ours.spec.preprocessing) for path in images[:2]])
    transform = vision.models.get_model_weights(name).DEFAULT.transforms()
    assert cosines(ours.embed_batch(list(batch)).vectors, publishers(network, transform, images[:2])).min() >= 0.9999


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=pytest.mark.soak)])
def test_efficientnet_is_timms(images: list[Path], engine) -> None:
    if engine == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    timm = torch_import.timm()
    network = efficientnet_lite0_classifier()
    network.reset_classifier(0)
    settings = timm.data.resolve_data_config(network.pretrained_cfg)
    transform = timm.data.create_transform(**settings)
    ours = NetworkEmbedder("efficientnet-lite0", engine=engine)
    batch = np.stack([prepare(path.read_bytes(), ours.spec.preprocessing) for path in images])
    assert cosines(ours.embed_batch(list(batch)).vectors, publishers(network, transform, images)).min() >= 0.9999


def test_a_scaled_decode_keeps_the_embedding() -> None:
    """Large photographs are decoded small: cosine >= 0.995 to the whole decode."""
    ours = NetworkEmbedder("efficientnet-lite0", engine="torch")
    preprocessing = ours.spec.preprocessing
    for seed, (width, height) in enumerate([(2400, 1600), (1300, 1900)]):
        data = encoded(pictures.scene(seed, width, height), "JPEG", quality=90)
        whole = Image.open(io.BytesIO(data)).convert("RGB")
        pair = np.stack([prepare(data, preprocessing), prepare(encoded(whole, compress_level=1), preprocessing)])
        image, other = ours.embed_batch(list(pair)).vectors
        assert float(image @ other) >= 0.995


def test_12_bits_and_floats_have_the_embedding_of_the_8_bit_picture() -> None:
    """The cosine is 0.99 at least."""
    ours = NetworkEmbedder("efficientnet-lite0", engine="torch")
    grey = np.asarray(pictures.scene(5, 300, 260).convert("L"))
    files = [
        encoded(Image.fromarray(grey)),
        encoded(Image.fromarray(grey.astype(np.uint16) * 16)),
        encoded(Image.fromarray(np.round(grey / 255 * 4095).astype(np.uint16)), "TIFF"),
        encoded(Image.fromarray((grey / 255).astype(np.float32)), "TIFF"),
    ]
    vectors = ours.embed_batch([prepare(data, ours.spec.preprocessing) for data in files]).vectors
    assert (vectors[1:] @ vectors[0]).min() >= 0.99


def classified(share: slice) -> float:
    """Share of the photographs that EfficientNet-Lite0 with its ImageNet head calls by their name."""
    timm = torch_import.timm()
    order = timm.data.ImageNetInfo().label_names()
    network = efficientnet_lite0_classifier()
    preprocessing = NetworkEmbedder("efficientnet-lite0", engine="torch").spec.preprocessing
    assert preprocessing is not None
    right = []
    with tarfile.open(PHOTOGRAPHS) as tar, torch.inference_mode():
        for entry in sorted((e for e in tar if e.isfile()), key=lambda e: e.name)[share]:
            file = tar.extractfile(entry)
            assert file is not None
            square = torch.from_numpy(prepare(file.read(), preprocessing).copy()).permute(2, 0, 1).float() / 255
            square = (square - torch.tensor(preprocessing.mean).view(3, 1, 1)) / torch.tensor(preprocessing.std).view(
                3, 1, 1
            )
            guess = int(network(square[None]).argmax())
            right.append(order[guess] == Path(entry.name).name.partition("_")[0])
    return float(np.mean(right))


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason=f"{PHOTOGRAPHS.name} is not here: no photographs to try")
@pytest.mark.parametrize("share", [pytest.param(slice(None), marks=pytest.mark.soak)], ids=["all"])
def test_efficientnet_knows_what_is_on_photographs(share: slice) -> None:
    """A test of the loading: shuffled tensors or another preprocessing would know next to nothing."""
    assert classified(share) >= 0.80
