"""Facts of the machine: processor, memory, versions of packages, read speed of memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.harness.rounds import CORES

PACKAGES = (
    "lakeloop",
    "lancedb",
    "pylance",
    "pyarrow",
    "duckdb",
    "numpy",
    "pillow",
    "torch",
    "torchvision",
    "timm",
    "openvino",
    "faiss-cpu",
)


def facts() -> dict[str, Any]:
    return {
        "cpu": _line("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": CORES,
        "cores_of_machine": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
    }


def installed(package: str) -> str | None:
    """The installed version of the package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_speed(turn: int, megabytes: int = 256) -> dict[str, float]:
    """A contender: the read speed of memory in GB/s, by one thread and by all cores; the best of seven passes.

    It reads with the dot product of BLAS of an array with itself, which every core computes faster than memory
    delivers. Run it with one BLAS thread, so that only its own threads count.
    """
    import numpy as np

    array = np.ones(megabytes * 250_000, np.float32)

    def speed(threads: int) -> float:
        parts = np.array_split(array, threads)
        best = 0.0
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(7):
                started = perf_counter()
                list(pool.map(lambda part: float(part @ part), parts))
                best = max(best, array.nbytes / (perf_counter() - started) / 1e9)
        return best

    return {"one_thread": speed(1), "all_cores": speed(CORES)}


def _line(path: str, name: str) -> str | None:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.partition(":")[2].strip()
    return None
