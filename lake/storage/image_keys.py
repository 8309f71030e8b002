"""Numbers for images, to count and find millions at once: almost certainly distinct, never used as an identity."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def keys_of(image_ids: pa.ChunkedArray) -> np.ndarray:
    """A uint64 for each image, computed from all 64 characters of its id."""
    if not len(image_ids):
        return np.empty(0, np.uint64)
    padded = pc.ascii_rpad(image_ids, 64).combine_chunks()
    words = np.frombuffer(padded.buffers()[2], np.uint64, count=8 * len(padded)).reshape(-1, 8)
    keys = np.zeros(len(padded), np.uint64)
    for word in words.T:
        keys = mixed(keys ^ word)
    return keys


def mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of x affects every bit of the result."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: np.ndarray = x ^ (x >> np.uint64(31))
    return result
