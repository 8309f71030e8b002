"""Pictures for tests: small, made from a seed, the same on every machine."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def flat(colour: Any, width: int = 32, height: int = 24) -> Image.Image:
    """One colour everywhere: its mean is the colour itself."""
    return Image.new("RGB", (width, height), colour)


def noise(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    """Every pixel drawn by itself: no two seeds look alike, and nothing compresses it."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def scene(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """Soft blobs of colour with some grain: a photograph's spectrum, roughly."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(soft) + grain, 0, 255).astype(np.uint8))


def corners(width: int = 48, height: int = 32) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right: shows which way is up."""
    image = Image.new("RGB", (width, height))
    for x, y, colour in ((0, 0, "red"), (1, 0, "lime"), (0, 1, "blue"), (1, 1, "white")):
        image.paste(Image.new("RGB", (width // 2, height // 2), colour), (x * width // 2, y * height // 2))
    return image


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def folder(root: Path, count: int, seed: int = 0) -> list[Path]:
    """`count` different PNG files 000.png, 001.png, ... in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    paths = [root / f"{i:03}.png" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(encoded(noise(seed * 10_000 + i, 24, 16)))
    return paths


def damaged(png: bytes) -> bytes:
    """The PNG without the second half of its pixels, but with an end: only decoding it shows what is wrong."""
    at = png.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", png, at)
    body = b"IDAT" + png[at + 8 : at + 8 + length // 2]
    return png[:at] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + png[-12:]
