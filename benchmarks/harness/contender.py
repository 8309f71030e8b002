"""The program of a contender's process: runs a function and writes its result to a file.

    python -m benchmarks.harness.contender MODULE:FUNCTION ARGUMENTS.json RESULT.json

It uses the standard library only: peers run it in their own environment, without lakeloop.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
from pathlib import Path
from time import perf_counter
from typing import Any


class Stopwatch:
    """Wall `seconds` and `cpu_seconds` between enter and exit.

    CPU seconds count this process with all its threads, and the children that ended in between: close worker pools
    inside.
    """

    seconds = 0.0
    cpu_seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._cpu = cpu_seconds()
        self._wall = perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = perf_counter() - self._wall
        self.cpu_seconds = cpu_seconds() - self._cpu

    def figures(self) -> dict[str, float]:
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}


def cpu_seconds() -> float:
    usages = (resource.getrusage(target) for target in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in usages)


def main(function: str, arguments: str, result: str) -> None:
    module, _, name = function.partition(":")
    returned: dict[str, Any] = getattr(importlib.import_module(module), name)(**json.loads(Path(arguments).read_text()))
    Path(result).write_text(json.dumps(returned))


if __name__ == "__main__":
    main(*sys.argv[1:])
