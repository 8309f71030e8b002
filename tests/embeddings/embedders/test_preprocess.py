"""The network gets the pixels its publisher's own preprocessing would give it."""

import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from embeddings.embedders import torch_import
from embeddings.embedders.preprocess import prepare, prepare_many, square
from embeddings.embedders.specs import SPECS, Preprocessing
from lake.errors import UnreadableImage
from tests import pictures
from tests.pictures import encoded

SMALL = Preprocessing(32, 28, "bilinear", (0.0,) * 3, (1.0,) * 3)


def publishers(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    torch_import.torchvision()
    from torchvision.transforms import functional as F
    from torchvision.transforms.functional import InterpolationMode

    size = [preprocessing.resize, preprocessing.resize] if preprocessing.mode == "squash" else [preprocessing.resize]
    resized = F.resize(image, size, InterpolationMode(preprocessing.interpolation), antialias=True)
    return np.asarray(F.center_crop(resized, [preprocessing.crop, preprocessing.crop]))


@given(
    width=st.integers(1, 130), height=st.integers(1, 130), resize=st.integers(8, 48), less=st.integers(-4, 7),
    interpolation=st.sampled_from(["bilinear", "bicubic"]), mode=st.sampled_from(["shortest", "squash"]),
)  # fmt: skip
def test_resize_and_crop_are_torchvisions(width: int, height: int, resize: int, less: int, interpolation, mode) -> None:
    """Of noise, the worst there is: where only the middle is computed, rounding may go another way."""
    preprocessing = replace(SMALL, resize=resize, crop=resize - less, interpolation=interpolation, mode=mode)
    image = pictures.noise(width * 200 + height, width, height)
    difference = np.abs(square(image, preprocessing).astype(int) - publishers(image, preprocessing))
    assert difference.mean() < 1
    if less < 0:
        assert difference.max() == 0


@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if s.preprocessing])
def test_every_embedders_square_is_its_publishers(name: str) -> None:
    preprocessing = SPECS[name].preprocessing
    assert preprocessing is not None
    for width, height in ((301, 257), (224, 500), (641, 480)):
        image = pictures.scene(1, width, height)
        difference = np.abs(prepare(encoded(image), preprocessing).astype(int) - publishers(image, preprocessing))
        assert difference.max() <= 3
        assert difference.mean() < 0.3


def test_without_preprocessing_the_image_comes_whole() -> None:
    assert (prepare(encoded(pictures.corners(20, 10)), None) == np.asarray(pictures.corners(20, 10))).all()


@pytest.mark.parametrize(("width", "height"), [(2400, 1600), (1500, 2200), (1024, 1024)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_large_jpeg_decoded_scaled_gives_nearly_the_same_square(width: int, height: int, interpolation) -> None:
    """In pixels here; that the embedding keeps a cosine of 0.995 is measured with the networks."""
    preprocessing = replace(SMALL, resize=256, crop=224, interpolation=interpolation)
    data = encoded(pictures.scene(2, width, height), "JPEG", quality=90)
    full = square(Image.open(io.BytesIO(data)).convert("RGB"), preprocessing).astype(float)
    assert np.abs(prepare(data, preprocessing) - full).mean() < 1.5


@pytest.mark.parametrize("crop", [224, 230])
@pytest.mark.parametrize("narrow", [1, 3])
def test_a_tall_strip_is_prepared_as_a_wide_one(narrow: int, crop: int) -> None:
    """Resized whole, the strip of 1 x 30,000 pixels would take 6 GB."""
    preprocessing = replace(SMALL, resize=224, crop=crop)
    strip = np.random.default_rng(1).integers(0, 256, (30_000, narrow, 3), np.uint8)
    tall = prepare(encoded(Image.fromarray(strip)), preprocessing).astype(int)
    wide = prepare(encoded(Image.fromarray(strip.transpose(1, 0, 2))), preprocessing).astype(int)
    assert tall.std() > 10
    assert np.abs(tall - wide.transpose(1, 0, 2)).max() <= 3


def test_a_bad_file_neither_stops_nor_shifts_the_others() -> None:
    first, third = encoded(pictures.noise(1)), encoded(pictures.noise(3))
    prepared = prepare_many([first, b"text", third, b""], SMALL)
    assert prepared.kept == [0, 2]
    assert set(prepared.reasons) == {1, 3}
    assert prepared.reasons[3] == "the file is empty"
    assert (prepared.images[1] == prepare(third, SMALL)).all()
    assert isinstance(prepared.images, np.ndarray)
    assert prepared.images.dtype == np.uint8
    assert prepared.images.shape == (2, 28, 28, 3)


def test_bad_files_alone_give_no_images() -> None:
    prepared = prepare_many([b"", b""], SMALL)
    assert (len(prepared.images), prepared.kept, len(prepared.reasons)) == (0, [], 2)


def test_too_large_an_image_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="too large"):
        prepare(encoded(pictures.noise(1, 100, 100)), SMALL, max_megapixels=0.001)
