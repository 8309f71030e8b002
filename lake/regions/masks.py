"""COCO run-length encoding of binary masks, and masks read from PNG files.

The format is pycocotools': pixels in column-major order as alternating runs of 0 and 1, the first of 0; runs from
the fourth on are stored as the difference to the run two before, in 5-bit groups, as ASCII from '0'
(github.com/cocodataset/cocoapi, common/maskApi.c). Sizes are (height, width).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lake.errors import BadInput, UnreadableImage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np


def encode(mask: np.ndarray) -> str:
    """Compressed counts of a boolean (height, width) mask."""
    import numpy as np

    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate(([0], edges, [flat.size]))
    runs = np.diff(bounds).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)
    return compress(runs)


def decode(counts: str, height: int, width: int) -> np.ndarray:
    """The boolean (height, width) mask. Raises BadInput if the counts do not cover it exactly."""
    import numpy as np

    runs = decompress(counts)
    check(runs, height, width)
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def compress(runs: Sequence[int]) -> str:
    """Run lengths to COCO's ASCII form."""
    text = []
    for i, run in enumerate(runs):
        x = run - runs[i - 2] if i > 2 else run
        while True:
            group = x & 0x1F
            x >>= 5
            more = x != (-1 if group & 0x10 else 0)
            text.append(chr((group | 0x20 if more else group) + 48))
            if not more:
                break
    return "".join(text)


def decompress(counts: str) -> list[int]:
    """COCO's ASCII form to run lengths. Raises BadInput if it is not valid."""
    runs: list[int] = []
    i = 0
    while i < len(counts):
        x = shift = 0
        while True:
            if i >= len(counts):
                raise BadInput("RLE counts end in the middle of a number")
            group = ord(counts[i]) - 48
            if not 0 <= group < 64:
                raise BadInput(f"RLE counts have the invalid character {counts[i]!r}")
            i += 1
            x |= (group & 0x1F) << shift
            shift += 5
            if not group & 0x20:
                if group & 0x10:
                    x |= -1 << shift
                break
            if shift > 60:
                raise BadInput("RLE counts have a number that is too long")
        runs.append(x + runs[-2] if len(runs) > 2 else x)
    return runs


def check(runs: Sequence[int], height: int, width: int) -> None:
    """Raises BadInput unless the runs are not negative and add up to height x width."""
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise BadInput(f"RLE counts do not add up to {height} x {width} pixels")


def area(counts: str) -> int:
    """Number of pixels in the mask."""
    return sum(decompress(counts)[1::2])


def from_png(data: bytes) -> tuple[str, int, int, float | None]:
    """One instance's mask from a grey PNG: (counts, height, width, mean probability or None).

    Two values {0, 1} or {0, 255}: a binary mask, no probability. Otherwise a probability map of 0 to 255: the mask
    is where it is at least one half, its score the mean over the mask's pixels. Raises UnreadableImage.
    """
    import numpy as np

    from lake.images.decode import open_image

    image = open_image(data)
    if image.mode not in ("1", "L", "P"):
        raise UnreadableImage(f"a mask must be a grey or black-and-white PNG, this one is {image.mode}")
    try:
        values = np.asarray(image.convert("L") if image.mode == "1" else image)
    except Exception as error:  # Pillow's decoders raise many kinds for broken files
        raise UnreadableImage(str(error)) from error
    present = set(np.unique(values).tolist())
    if present <= {0, 1} or present <= {0, 255}:
        return encode(values > 0), values.shape[0], values.shape[1], None
    if image.mode == "P" or max(present) < 32:
        raise UnreadableImage("this looks like a map of class numbers; give one mask per instance")
    mask = values >= 128
    score = float(values[mask].mean() / 255.0) if mask.any() else 0.0
    return encode(mask), values.shape[0], values.shape[1], score
