"""CLIP is open_clip's own: the same vectors of images, the same ranking by text."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from embeddings.backfill.backfill import backfill
from embeddings.embedders import networks, torch_import
from embeddings.embedders.embedder import TextEmbedder, for_lake, record_of
from embeddings.search.search import search
from lake import ids, open_lake
from lake.errors import BadInput
from lake.ingest import ingest
from lake.open_lake import OpenLake
from tests import pictures
from tests.embeddings.colour import MeanColour
from tests.embeddings.embedders.test_networks import cosines, publishers, stored
from tests.pictures import encoded

TEXTS = ["a photograph of a cat", "red", "seven solar cells seen from above"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:open_clip")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    for i in range(6):
        (folder / f"{i}.png").write_bytes(encoded(pictures.scene(i, 260 + 7 * i, 230 + 11 * i)))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def clip() -> tuple[Any, Any, Any]:
    """open_clip's ViT-B-32 with random weights, its preprocessing and its tokenizer."""
    open_clip = torch_import.open_clip()
    torch_import.torch().manual_seed(11)
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None)
    return model.eval(), transform, open_clip.get_tokenizer("ViT-B-32")


@pytest.fixture(scope="module")
def embedded(
    clip: tuple[Any, Any, Any], images: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[OpenLake, TextEmbedder]:
    """A lake with two embedders side by side; CLIP's weights came from a file that is gone."""
    root = tmp_path_factory.mktemp("clip")
    file = root / "open_clip_model.safetensors"
    save_file({k: v.contiguous() for k, v in clip[0].state_dict().items()}, file)
    lk = open_lake.create(str(root / "lake"), embedders=["clip-vit-b-32", "mean-colour"])
    ingest.ingest(lk, images[0].parent, workers=1)
    model = for_lake(lk, record_of(lk, "clip-vit-b-32"), file=file, engine="torch")
    backfill(lk, record_of(lk, "clip-vit-b-32"), model, file=file, workers=1)
    backfill(lk, record_of(lk, "mean-colour"), MeanColour(), workers=1)
    file.unlink()
    del model
    kept = for_lake(lk, record_of(lk, "clip-vit-b-32"), engine="torch")
    assert isinstance(kept, TextEmbedder)
    return lk, kept


@pytest.fixture(scope="module")
def theirs(clip: tuple[Any, Any, Any], images: list[Path]) -> np.ndarray:
    """open_clip's vectors of the images."""
    return publishers(clip[0].encode_image, clip[1], images)


def test_images_have_open_clips_vectors(embedded, theirs: np.ndarray, images: list[Path]) -> None:
    assert cosines(stored(embedded[0], "emb_clip_vit_b_32", images), theirs).min() >= 0.9999


def test_a_text_finds_images_in_open_clips_order(clip, embedded, theirs: np.ndarray, images: list[Path]) -> None:
    model, _, tokenizer = clip
    lk, kept = embedded
    with torch_import.torch().inference_mode():
        words = model.encode_text(tokenizer(TEXTS)).numpy()
    assert cosines(kept.embed_texts(TEXTS), words).min() >= 0.9999
    for text, word in zip(TEXTS, words, strict=True):
        order = np.argsort(-cosines(theirs, np.tile(word, (len(theirs), 1))))
        rows = search(lk, text=text, model=kept, embedder="clip-vit-b-32")
        assert rows["image_id"].to_pylist() == [ids.image_id(images[i].read_bytes()) for i in order]


def test_an_image_finds_itself_without_the_file(embedded, images: list[Path]) -> None:
    lk, kept = embedded
    rows = search(lk, image=images[3], model=kept, k=2)
    assert rows["source"][0].as_py() == str(images[3])


def test_two_embedders_live_side_by_side(embedded, images: list[Path]) -> None:
    lk, _ = embedded
    clip, colour = lk.embedders()
    assert (clip.dim, clip.embeds_text, clip.weights) == (512, True, "open_clip_model.safetensors")
    assert (colour.dim, colour.embeds_text) == (3, False)
    assert clip.licence == "not known: weights from a file"
    rows = lk.sql("SELECT count(emb_clip_vit_b_32) AS a, count(emb_mean_colour) AS b FROM samples").to_pylist()
    assert rows == [{"a": 6, "b": 6}]
    colours = search(lk, image=images[0], embedder="mean-colour", model=MeanColour())
    assert colours["source"][0].as_py() == str(images[0])
    with Image.open(images[0]) as image:
        mean = np.asarray(image, float).mean(axis=(0, 1))
    mine = stored(lk, "emb_mean_colour", images[:1])
    assert cosines(mine, mean[None]).min() > 0.999


def test_an_empty_text_is_refused(embedded) -> None:
    lk, kept = embedded
    with pytest.raises(BadInput, match="the text is empty"):
        search(lk, text="  ", model=kept)


def test_a_pickle_from_the_hub_is_trusted_no_more_than_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "open_clip_pytorch_model.bin"
    torch_import.torch().save({}, file)
    monkeypatch.setattr(torch_import.open_clip(), "download_pretrained", lambda config: str(file))
    with pytest.raises(BadInput, match="not the published file"):
        networks.build("clip-vit-b-32", None, None)


@pytest.mark.soak
def test_a_pickled_checkpoint_is_read_if_trusted(clip, tmp_path: Path) -> None:
    from embeddings.embedders.embedder import NetworkEmbedder

    file = tmp_path / "open_clip_pytorch_model.bin"
    torch_import.torch().save({"state_dict": clip[0].state_dict()}, file)
    with pytest.raises(BadInput, match="--trust-sha256"):
        NetworkEmbedder("clip-vit-b-32", file, engine="torch")
    trust = hashlib.sha256(file.read_bytes()).hexdigest()
    assert NetworkEmbedder("clip-vit-b-32", file, trust, engine="torch").spec.embeds_text
