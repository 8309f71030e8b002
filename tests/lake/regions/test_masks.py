"""Masks in COCO's run-length encoding, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from lake.errors import BadInput, UnreadableImage
from lake.regions import masks
from tests.pictures import encoded

MASKS = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40))


def test_a_mask_by_hand() -> None:
    """Two rows of three, column by column: 0 1 | 1 1 | 0 0, so runs 1, 3, 2; each fits one character from '0'."""
    mask = np.array([[0, 1, 0], [1, 1, 0]], bool)
    assert masks.encode(mask) == "132"
    assert masks.decode("132", 2, 3).tolist() == mask.tolist()
    assert masks.area("132") == 3


def test_a_long_run_by_hand() -> None:
    """100 = 0b11_00100: the low five bits with the mark of more (4 + 32), then 3: chr(48 + 36) = 'T', then '3'."""
    assert masks.compress([100]) == "T3"


def test_from_the_fourth_run_on_the_difference_to_two_before_is_stored() -> None:
    """5, 7, 9 as they are; 3 is stored as 3 - 7 = -4, whose low five bits are 11100 = 28: chr(48 + 28) = 'L'."""
    assert masks.compress([5, 7, 9, 3]) == "579L"
    assert masks.decompress("579L") == [5, 7, 9, 3]


def test_a_mask_that_begins_with_one_begins_with_an_empty_run() -> None:
    assert masks.encode(np.ones((2, 2), bool)) == "04"
    assert masks.encode(np.zeros((2, 2), bool)) == "4"


@given(MASKS)
def test_a_mask_comes_back(mask: np.ndarray) -> None:
    counts = masks.encode(mask)
    assert (masks.decode(counts, *mask.shape) == mask).all()
    assert masks.area(counts) == mask.sum()


@given(st.lists(st.integers(0, 1 << 40), max_size=20))
def test_runs_come_back(runs: list[int]) -> None:
    assert masks.decompress(masks.compress(runs)) == runs


@given(MASKS)
def test_pycocotools_says_the_same(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    assert coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode() == masks.encode(mask)


@given(st.text(max_size=30))
def test_any_text_is_runs_or_refused(text: str) -> None:
    try:
        runs = masks.decompress(text)
    except BadInput:
        return
    assert all(isinstance(run, int) for run in runs)


def test_counts_must_cover_the_image_exactly() -> None:
    for counts in ("131", "133", ""):
        with pytest.raises(BadInput, match="do not add up to 2 x 3"):
            masks.decode(counts, 2, 3)
    with pytest.raises(BadInput, match="add up"):
        masks.check([-1, 7], 2, 3)


def grey(values: list[list[int]]) -> bytes:
    return encoded(Image.fromarray(np.array(values, np.uint8)))


@pytest.mark.parametrize("value", [1, 255])
def test_a_two_valued_png_is_a_mask_without_a_score(value: int) -> None:
    assert masks.from_png(grey([[0, value, 0], [value, value, 0]])) == ("132", 2, 3, None)


def test_a_black_and_white_png_is_a_mask() -> None:
    assert masks.from_png(encoded(Image.fromarray(np.array([[0, 1, 0], [1, 1, 0]], bool)))) == ("132", 2, 3, None)


def test_a_probability_map_is_cut_at_one_half_and_scored_by_its_mean() -> None:
    counts, height, width, score = masks.from_png(grey([[0, 204, 0], [153, 255, 127]]))
    assert (counts, height, width) == ("132", 2, 3)
    assert score == pytest.approx((204 + 153 + 255) / 3 / 255)


def test_a_map_that_is_nowhere_probable_is_an_empty_mask() -> None:
    assert masks.from_png(grey([[0, 100]])) == ("2", 1, 2, 0.0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (grey([[0, 1, 2, 3]]), "map of class numbers"),
        (encoded(Image.new("RGB", (3, 2))), "this one is RGB"),
        (b"not a png", "not an image"),
        (encoded(Image.effect_noise((30, 30), 50))[:400], "truncated"),
    ],
)
def test_other_pngs_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        masks.from_png(data)


def test_a_broken_png_is_refused_whatever_is_broken() -> None:
    data = bytearray(encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8))))
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        broken = data.copy()
        for offset in rng.integers(0, len(data), 3):
            broken[offset] = rng.integers(256)
        try:
            masks.from_png(bytes(broken))
        except UnreadableImage:
            refused += 1
    assert refused > 200
