"""Functions that tests run in worker processes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from typing import Any

from embeddings.embedders.preprocess import Prepared, prepare_many
from embeddings.embedders.specs import Preprocessing
from lake.images import decode
from lake.images.levels import Levels

DEADLY = b"DEADLY"


def double(number: int) -> int:
    time.sleep(0.02 * (number % 3))  # later tasks end before earlier ones
    return 2 * number


def double_or_die(number: int, ending: str) -> int:
    if ending == "exit":
        os._exit(3)
    if ending == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "raise":
        raise ValueError("a bug")
    if ending == "eat":
        return len(bytearray(8 << 30))
    if ending == "sleep":
        time.sleep(60)
    return 2 * number


def environment() -> tuple[str | None, int]:
    return os.environ.get("OMP_NUM_THREADS"), os.getpid()


class Code:
    """Unpickling it creates a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._folder,)


def double_or_answer_with_code(number: int, folder: str) -> int:
    return Code(folder) if folder else 2 * number  # type: ignore[return-value]


def double_or_write(number: int, message: bytes) -> int:
    """Doubles, or does what code in a hostile image would do: writes a message of its own, and reads nothing more."""
    if message:
        [descriptor] = [int(name) for name in os.listdir("/proc/self/fd") if _is_socket(int(name))]
        with socket.socket(fileno=descriptor) as pipe:
            pipe.sendall(message)
            time.sleep(60)
    return 2 * number


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:  # the folder's own, closed again
        return False


def decode_or_die(
    files: list[bytes], max_megapixels: float, declared: decode.Declared | None
) -> list[decode.Decoded | str]:
    """Like lake.images.decode:decode_many, but DEADLY bytes crash the decoder."""
    if any(data.endswith(DEADLY) for data in files):
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode.decode_many(files, max_megapixels, declared)


def prepare_or_die(
    files: list[bytes], preprocessing: Preprocessing | None, levels: list[Levels | None] | None
) -> Prepared:
    """Like embeddings.embedders.preprocess:prepare_many, but DEADLY bytes crash the worker."""
    if any(data.endswith(DEADLY) for data in files):
        os.kill(os.getpid(), signal.SIGSEGV)
    return prepare_many(files, preprocessing, levels)
