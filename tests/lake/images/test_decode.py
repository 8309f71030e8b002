"""Any file becomes upright 8-bit RGB and a thumbnail, or a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lake.errors import UnreadableImage
from lake.images import decode
from lake.images.image_header import read_header
from lake.images.workers import HTTP_MEMORY_BYTES, WorkerPool
from tests import pictures
from tests.pictures import encoded

# What Pillow remarks about a broken TIFF; workers' stderr goes nowhere.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SIDEWAYS = (5, 6, 7, 8)


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(decode.pixels(decode.open_image(data)))


def quarters(data: bytes) -> list[tuple[int, ...]]:
    """The colours in the middle of the four quarters: top left, top right, bottom left, bottom right."""
    pixels = rgb(data)
    height, width, _ = pixels.shape
    return [tuple(pixels[height * y // 4, width * x // 4].tolist()) for y in (1, 3) for x in (1, 3)]


def close(decoded: list[tuple[int, ...]], wanted: list[tuple[int, ...]], by: int = 12) -> bool:
    return bool((np.abs(np.asarray(decoded, int) - np.asarray(wanted, int)) <= by).all())


def lying(image: Image.Image, orientation: int) -> Image.Image:
    """The pixels a camera stores for an upright image when it notes this EXIF orientation."""
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    return image if undo is None else image.transpose(undo)


@pytest.mark.parametrize("format", decode.FORMATS)
def test_every_format_gives_its_pixels(format: str) -> None:
    data = encoded(pictures.corners(), format, **({"quality": 95} if format in ("JPEG", "WEBP") else {}))
    decoded = decode.decode(data)
    assert (decoded.format, decoded.width, decoded.height) == (format, 48, 32)
    assert close(quarters(data), [RED, GREEN, BLUE, WHITE], by=30)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_upright_image(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = lying(pictures.corners(), orientation)
    assert stored.size == ((32, 48) if orientation in SIDEWAYS else (48, 32))
    data = encoded(stored, format, exif=exif)
    decoded = decode.decode(data)
    assert (decoded.width, decoded.height) == (48, 32)
    assert (decoded.thumbnail_width, decoded.thumbnail_height) == (48, 32)
    assert close(quarters(data), [RED, GREEN, BLUE, WHITE], by=60)
    assert close(quarters(decoded.thumbnail), [RED, GREEN, BLUE, WHITE], by=60)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01"]
)
def test_broken_exif_costs_only_the_orientation(exif: bytes) -> None:
    decoded = decode.decode(encoded(pictures.corners(), "JPEG", exif=exif))
    assert (decoded.width, decoded.height) == (48, 32)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_grey_is_scaled_to_8(format: str, order: str) -> None:
    """0, 257, 2 x 257, ... 65535 are 0, 1, 2, ... 255."""
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    pixels = rgb(encoded(Image.fromarray(values.astype(f"{order}u2") if format == "TIFF" else values), format))
    assert (pixels == np.arange(256).reshape(16, 16, 1)).all()


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_rgb_is_scaled_to_8() -> None:
    """Pillow cannot write one, so this is made by hand: a filter byte, then three big-endian numbers."""
    data = png(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 65535, 128 * 257, 0))
    assert rgb(data).tolist() == [[[255, 128, 0]]]


def test_cmyk_jpeg() -> None:
    data = encoded(pictures.corners().convert("CMYK"), "JPEG", quality=95)
    assert close(quarters(data), [RED, GREEN, BLUE, WHITE], by=40)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 4, 8))
    pixels = rgb(encoded(clear.convert(mode), "PNG"))
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[0, 7].tolist() == [255, 255, 255]


def test_half_transparent_red_is_pink() -> None:
    assert rgb(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"))[0, 0].tolist() == [255, 127, 127]


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_palettes_transparent_colour_is_white(format: str) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((3, 3), 1)
    pixels = rgb(encoded(image, format, transparency=0))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[3, 3].tolist() == [0, 0, 255]


def test_one_bit_pixels_are_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    for format in ("PNG", "BMP", "TIFF"):
        assert rgb(encoded(image, format)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_float_pixels_are_stretched_from_their_least_to_their_greatest() -> None:
    image = Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32))
    assert rgb(encoded(image, "TIFF"))[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_float_pixels_without_a_range_are_still_an_image(value: float) -> None:
    assert rgb(encoded(Image.fromarray(np.full((2, 3), value, np.float32)), "TIFF")).shape == (2, 3, 3)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP"])
def test_of_several_frames_the_first_counts(format: str) -> None:
    data = encoded(pictures.flat(RED), format, save_all=True, append_images=[pictures.flat(BLUE)])
    assert close([tuple(rgb(data)[12, 16].tolist())], [RED], by=5)


def test_a_phones_jpeg_with_a_second_picture_is_a_jpeg() -> None:
    data = encoded(pictures.flat(RED), "MPO", save_all=True, append_images=[pictures.flat(BLUE)])
    assert decode.decode(data).format == "JPEG"
    assert close([tuple(rgb(data)[12, 16].tolist())], [RED], by=5)


@pytest.mark.parametrize("format", decode.FORMATS)
def test_a_file_cut_anywhere_is_an_image_or_a_reason(format: str) -> None:
    data = encoded(pictures.scene(1, 40, 28), format)
    reasons = set()
    for length in {*range(0, min(len(data), 64)), *range(0, len(data), max(1, len(data) // 60))}:
        try:
            assert decode.decode(data[:length]).width == 40
        except UnreadableImage as error:
            reasons.add(str(error))
    assert "the file is empty" in reasons
    assert all(reasons)


@pytest.mark.parametrize("format", decode.FORMATS)
def test_a_file_with_wrong_bytes_is_an_image_or_a_reason(format: str) -> None:
    data = encoded(pictures.scene(2, 40, 28), format)
    rng = np.random.default_rng(0)
    reasons = []
    for _ in range(150):
        broken = bytearray(data)
        for offset in rng.integers(0, min(len(data), 400), rng.integers(1, 5)):
            broken[offset] = rng.integers(256)
        try:
            assert decode.decode(bytes(broken), max_megapixels=4).thumbnail
        except UnreadableImage as error:
            reasons.append(str(error))
    assert len(reasons) > 5
    assert all(reasons)


def test_half_a_jpeg_is_refused_not_filled_with_grey() -> None:
    data = encoded(pictures.scene(3, 200, 150), "JPEG")
    with pytest.raises(UnreadableImage, match="truncated"):
        decode.decode(data[: len(data) // 2])


def with_small_picture(data: bytes) -> bytes:
    """A JPEG with a whole JPEG in its EXIF data, as cameras write it."""
    inner = b"Exif\0\0" + encoded(pictures.scene(4, 16, 12), "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(inner) + 2) + inner + data[2:]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_file_is_refused_by_its_header_if_decoding_refuses_it(format: str) -> None:
    """A server reads headers only before it acknowledges; bulk ingest decodes. Both refuse the same files."""
    whole = [encoded(pictures.scene(3, 200, 150), format)]
    whole += [with_small_picture(whole[0]), encoded(pictures.scene(3, 99, 80), "JPEG", progressive=True)] * (
        format == "JPEG"
    )
    for data in whole:
        assert read_header(data + b"trailing bytes", 100).format == format
        for length in range(len(data) // 2, len(data), 97):
            for read in (decode.decode, lambda file: read_header(file, 100)):
                with pytest.raises(UnreadableImage):
                    read(data[:length])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"image,label\na.png,cat\n", "not an image of a known format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9"/></svg>', "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (png(50_000, 50_000, 8, 2, b""), "50000 x 50000 is over 100 megapixels"),
    ],
)
def test_a_file_that_is_not_an_image_gets_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode.decode(data)


def test_many_images_are_decoded_in_their_order() -> None:
    good = encoded(pictures.corners())
    first, second, third = decode.decode_many([good, b"text", good], 100, None)
    assert first == third == decode.decode(good)
    assert "not an image" in str(second)


@pytest.mark.parametrize(("width", "height"), [(700, 500), (500, 700), (1, 3000), (3000, 1), (256, 256), (257, 16)])
def test_a_thumbnail_is_small_whatever_the_image(width: int, height: int) -> None:
    """Noise in three colours is the worst that JPEG can be given."""
    decoded = decode.decode(encoded(pictures.noise(4, width, height)))
    assert len(decoded.thumbnail) <= 16 << 10
    with Image.open(io.BytesIO(decoded.thumbnail)) as thumbnail:
        assert (thumbnail.format, thumbnail.mode) == ("JPEG", "RGB")
        assert thumbnail.size == (decoded.thumbnail_width, decoded.thumbnail_height)
        assert max(thumbnail.size) <= 256
    assert (
        decoded.thumbnail_width / decoded.thumbnail_height == pytest.approx(width / height, rel=0.02)
        or 1 in thumbnail.size
    )


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.sampled_from([256, 192, 144]))
def test_a_thumbnail_has_the_size_that_pillow_would_give_it(size: tuple[int, int], side: int) -> None:
    image = Image.new("1", size)
    image.thumbnail((side, side), Image.Resampling.NEAREST)
    assert max(size) <= side or decode._fitting(size, side) == image.size


def test_a_thumbnail_brings_no_words_along() -> None:
    """A JPEG's comment can be larger than a thumbnail may be."""
    data = encoded(pictures.scene(6, 300, 200), "JPEG", comment=b"secret" * 10_000)
    assert b"secret" not in decode.decode(data).thumbnail
    assert b"secret" not in decode.normalise(data, 40, 300)


def test_a_small_image_is_not_enlarged() -> None:
    decoded = decode.decode(encoded(pictures.corners()))
    assert (decoded.thumbnail_width, decoded.thumbnail_height) == (48, 32)


def test_a_scaled_decode_keeps_the_side_asked_for() -> None:
    data = encoded(pictures.scene(5, 1200, 800), "JPEG")
    small = decode.pixels(decode.open_image(data), shortest_side=150)
    assert small.size == (300, 200)
    assert decode.pixels(decode.open_image(data), shortest_side=801).size == (1200, 800)


def test_a_query_image_is_brought_to_a_bounded_upright_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(lying(pictures.corners(900, 600), 6), "JPEG", exif=exif)
    jpeg = decode.normalise(data, 40, 300)
    with Image.open(io.BytesIO(jpeg)) as image:
        assert (image.format, image.size) == ("JPEG", (300, 200))
    assert close(quarters(jpeg), [RED, GREEN, BLUE, WHITE], by=20)
    with pytest.raises(UnreadableImage, match=r"over 0\.1 megapixels"):
        decode.normalise(data, 0.1, 300)


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_a_hundred_megapixels_fit_in_a_servers_worker(mode: str) -> None:
    with WorkerPool("lake.images.decode:decode_many", 1, memory_bytes=HTTP_MEMORY_BYTES) as pool:
        (decoded,) = pool.run([encoded(Image.new(mode, (10_000, 10_000)), "PNG", compress_level=1)], 100, None)
    assert isinstance(decoded, decode.Decoded), decoded
    assert (decoded.width, decoded.height) == (10_000, 10_000)
