"""A picture of 10, 12, 14, 16 or 32 bits or of floats is the same picture as with 8 bits."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from lake.errors import UnreadableImage
from lake.images import decode, levels
from lake.images.levels import Levels, Spread
from tests import pictures
from tests.hostile.files import chunk
from tests.lake.images.test_decode import lying, png, rgb
from tests.pictures import encoded

PICTURE = pictures.scene(3, 60, 40)
GREY = np.asarray(PICTURE.convert("L"))
COLOURS = np.asarray(PICTURE)
BOTH = ("uint16", "float")


def tiff(values: np.ndarray, **tags: object) -> bytes:
    extra = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        number = {"least": 340, "greatest": 341, "no_data": 42113}[name]
        extra[number] = str(value) if name == "no_data" else value
        extra.tagtype[number] = 2 if name == "no_data" else 12
    return encoded(Image.fromarray(values), "TIFF", tiffinfo=extra)


def png16(values: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of 16 bits: grey, grey and alpha, colours, or colours and alpha. Pillow writes grey ones only."""
    kind = {2: 0, 3: {2: 4, 3: 2, 4: 6}.get(values.shape[-1], 0)}[values.ndim]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = png(values.shape[1], values.shape[0], 16, kind, rows)
    return data[:33] + b"".join(chunks) + data[33:]


def off(data: bytes, picture: np.ndarray = GREY) -> int:
    """The greatest difference of a decoded grey file to the 8-bit picture."""
    return int(np.abs(rgb(data)[..., 0].astype(int) - picture).max())


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_fewer_bits_in_a_file_of_16_are_the_8_bit_picture(bits: int) -> None:
    deep = np.round(GREY / 255 * (2**bits - 1)).astype(np.uint16)
    for data in (encoded(Image.fromarray(deep)), tiff(deep), tiff(deep.astype(np.int32)), png16(deep)):
        assert off(data) <= 1
        assert decode.decode(data).levels == Levels(0, 2**bits - 1)


@pytest.mark.parametrize("white", [1.0, 255.0, 4095.0])
def test_floats_of_a_usual_scale_are_the_8_bit_picture(white: float) -> None:
    data = tiff((GREY / 255 * white).astype(np.float32))
    assert off(data) <= 1
    assert (decode.decode(data).pixel_type, decode.decode(data).levels) == ("float", Levels(0, white))


@pytest.mark.parametrize("bits", [12, 16])
def test_colours_of_16_bits_keep_their_low_bytes(bits: int) -> None:
    deep = np.round(COLOURS / 255 * (2**bits - 1)).astype(np.uint16)
    opaque = np.full((*GREY.shape, 1), 65535, np.uint16)
    for values in (deep, np.concatenate([deep, opaque], axis=2)):
        assert np.abs(rgb(png16(values)).astype(int) - COLOURS).max() <= 1
    grey = np.round(GREY / 255 * (2**bits - 1)).astype(np.uint16)
    half = np.where(np.arange(60) < 30, 65535, 0)[None, :].repeat(40, 0).astype(np.uint16)
    shown = rgb(png16(np.dstack([grey, half])))[..., 0].astype(int)
    assert np.abs(shown[:, :30] - GREY[:, :30]).max() <= 1
    assert (shown[:, 30:] == 255).all()  # transparent: laid on white


def handmade(values: np.ndarray, order: str, bits: int) -> bytes:
    """A TIFF of unsigned numbers, uncompressed, of a kind that Pillow does not write."""
    height, width, samples = values.shape
    depths = struct.pack(f"{order}{samples}H", *[bits] * samples).ljust(4, b"\0")
    first = 8 + 2 + 12 * 9 + 4
    pixels = values.astype(f"{order}u{bits // 8}").tobytes()
    depth = (first, 4) if samples > 1 else (bits if order == "<" else bits << 16, 4)
    entries = [
        (256, width, 4), (257, height, 4), (258, depth[0], 3), (259, 1, 4), (262, 2 if samples > 1 else 1, 4),
        (273, first + len(depths), 4), (277, samples, 4), (278, height, 4), (279, len(pixels), 4),
    ]  # fmt: skip
    directory = b"".join(
        struct.pack(f"{order}HHII", tag, kind, samples if tag == 258 else 1, value) for tag, value, kind in entries
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + directory + bytes(4) + depths + pixels


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_colours_in_either_byte_order(order: str) -> None:
    data = handmade(COLOURS.astype(np.uint16) * 16 + COLOURS // 16, order, 16)
    assert np.abs(rgb(data).astype(int) - COLOURS).max() <= 1


@pytest.mark.parametrize("name", ["inf0.tif", "nanmid0.tif", "nodata0.tif"])
@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan, -9999, -3.4e38, 9.96921e36])
def test_a_value_that_is_no_value_does_not_change_the_others(name: str, wrong: float) -> None:
    values = (GREY / 255).astype(np.float32)
    where: Any = {"inf0.tif": np.s_[5, 5], "nanmid0.tif": np.s_[0, 0], "nodata0.tif": np.s_[:20, :30]}[name]
    values[where] = wrong
    counts = np.ones(GREY.shape, bool)
    counts[where] = False
    shown = rgb(tiff(values))[..., 0]
    assert np.abs(shown.astype(int) - GREY)[counts].max() <= 1
    assert (shown[~counts] == (255 if wrong > 0 else 0)).all()


def test_a_declared_no_data_value_is_black() -> None:
    values = GREY.astype(np.float32) / 255
    values[:10] = 77
    shown = rgb(tiff(values, no_data=77))[..., 0]
    assert (shown[:10] == 0).all()
    assert np.abs(shown[10:].astype(int) - GREY[10:]).max() <= 1


def test_the_greatest_number_of_16_bits_is_no_value_only_far_above_all_others() -> None:
    twelve = GREY.astype(np.uint16) * 16
    twelve[:4] = 65535
    assert decode.decode(encoded(Image.fromarray(twelve))).levels == Levels(0, 4095)
    saturated = GREY.astype(np.uint16) * 200
    saturated[:4] = 65535
    assert decode.decode(encoded(Image.fromarray(saturated))).levels == Levels(0, 65535)
    stencil = np.where(GREY > 99, 65535, 0).astype(np.uint16)
    assert set(np.unique(rgb(encoded(Image.fromarray(stencil))))) == {0, 255}


def test_a_hot_pixel_does_not_decide_and_a_lamp_does() -> None:
    dark = (GREY // 2).astype(np.uint16) * 8  # 12 bits, of which it uses ten
    assert decode.decode(encoded(Image.fromarray(dark))).levels == Levels(0, 1023)
    dark[7, 7] = 4000
    assert decode.decode(encoded(Image.fromarray(dark))).levels == Levels(0, 4095)
    dark[7, 7] = 60000
    assert decode.decode(encoded(Image.fromarray(dark))).levels == Levels(0, 1023)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (tiff(GREY.astype(np.uint16) * 4, least=100.0, greatest=2000.0), (100, 2000)),
        (tiff(GREY.astype(np.float32), least=-5.0, greatest=300.0), (-5, 300)),
        (png16(GREY.astype(np.uint16), chunk(b"sBIT", b"\x0c")), (0, 4095)),
        (png16(GREY.astype(np.uint16) * 257, chunk(b"sBIT", b"\x0c")), (0, 65535)),
        (png16(GREY.astype(np.uint16) // 16 * 16, chunk(b"sBIT", b"\x0c")), (0, 255)),
    ],
)
def test_what_the_file_says_comes_first(data: bytes, expected: tuple[float, float]) -> None:
    """PNG asks that values fill the 16 bits, whatever sBIT is; files that do so are recognised by their low bits."""
    decoded = decode.decode(data)
    assert decoded.levels == Levels(*expected)
    declared = decode.Declared(dict.fromkeys(BOTH, Levels(0, 999)), dict.fromkeys(BOTH, "source x"))
    assert decode.decode(data, declared=declared).levels == (
        Levels(*expected) if decoded.levels_from == "file" else Levels(0, 999)
    )
    forced = decode.Declared(dict.fromkeys(BOTH, Levels(0, 999)), dict.fromkeys(BOTH, "declared x"), BOTH)
    assert (decode.decode(data, declared=forced).levels, decode.decode(data, declared=forced).levels_from) == (
        Levels(0, 999), "declared x",
    )  # fmt: skip


def test_temperatures_have_no_usual_scale_and_go_from_their_least_to_their_greatest() -> None:
    kelvin = (273 + GREY / 255 * 40).astype(np.float32)
    shown = rgb(tiff(kelvin))[..., 0]
    assert shown.min() == 0
    assert shown.max() == 255
    hounsfield = (GREY.astype(np.int32) - 100) * 10
    found = decode.decode(tiff(hounsfield)).levels
    assert found is not None
    assert found.black < 0 < found.white


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_a_deep_image_is_turned_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = lying(Image.fromarray(GREY), orientation)
    data = encoded(Image.fromarray(np.asarray(stored).astype(np.uint16) * 257), format, exif=exif)
    assert (rgb(data)[..., 0] == GREY).all()
    assert (decode.decode(data).width, decode.decode(data).height) == (60, 40)


def test_unsigned_32_bits_are_not_negative() -> None:
    data = handmade(GREY[..., None].astype(np.uint32) * (2**24), "<", 32)
    assert decode.decode(data).pixel_type == "uint32"
    assert np.corrcoef(rgb(data)[..., 0].ravel(), GREY.ravel())[0, 1] > 0.999


def test_levels_of_a_source_hold_for_its_darkest_image() -> None:
    bright, dark = Spread("uint16", 0, 4000), Spread("uint16", 10, 30)
    assert levels.found([dark]) == Levels(0, 255)
    assert levels.found([dark, bright]) == Levels(0, 4095)
    data = encoded(Image.fromarray(np.full((4, 4), 41, np.uint16)))
    assert rgb(data).max() == 41
    assert np.asarray(decode.pixels(decode.open_image(data), levels=Levels(0, 4095))).max() == 3


@settings(max_examples=40)
@given(st.integers(0, 2), st.floats(width=32), st.floats(width=32))
def test_any_values_are_a_picture(kind: int, one: float, other: float) -> None:
    values = np.full((4, 4), one, np.float32)
    values[2:] = other
    if kind:
        values = np.nan_to_num(values, posinf=0, neginf=0).clip(-(2**31), 2**31 - 129)
    data = tiff(values.astype([np.float32, np.int32, np.uint16][kind], casting="unsafe"))
    assert rgb(data).shape == (4, 4, 3)
    assert decode.decode(data).levels is not None


def test_8_bit_images_have_no_levels() -> None:
    for format in decode.FORMATS:
        decoded = decode.decode(encoded(PICTURE, format))
        assert (decoded.pixel_type, decoded.levels, decoded.levels_from) == (None, None, None)


def test_a_broken_deep_image_gets_a_reason() -> None:
    data = encoded(Image.fromarray(GREY.astype(np.uint16)))
    with pytest.raises(UnreadableImage):
        decode.decode(data[:-400])
    cut, whole, eight_bits, text = decode.spread_many([data[:-400], data, encoded(PICTURE), b"?"], 100)
    assert cut is eight_bits is text is None
    assert whole is not None
    assert (whole.pixel_type, whole.high) == ("uint16", GREY.max())


def test_the_thumbnail_of_a_12_bit_image_is_visible() -> None:
    decoded = decode.decode(encoded(Image.fromarray(np.linspace(0, 4095, 3000).reshape(50, 60).astype(np.uint16))))
    with Image.open(io.BytesIO(decoded.thumbnail)) as thumbnail:
        assert np.asarray(thumbnail).max() > 240
