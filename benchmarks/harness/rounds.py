"""Runs rounds of contenders, one process each, and summarises them.

A round runs every contender once; the next round runs them in reverse order (A B C, C B A, ...), so that a drift of the
machine affects all. Each process gets the same cores, and as many threads as cores in each thread pool. Ratios are
taken within a round; their median is reported with a bootstrap interval. The load from other processes is measured:
disturbed rounds are left out if enough others remain.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from benchmarks.harness.contender import cpu_seconds

ROOT = Path(__file__).resolve().parents[2]
CORES = len(os.sched_getaffinity(0))
THREAD_POOLS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "TOKIO_WORKER_THREADS",
    "LANCE_CPU_THREADS",
    "POLARS_MAX_THREADS",
)
# A round is disturbed if other processes used more than this share of a core, or the host this share of the machine.
FOREIGN_MOST = 0.2
STEAL_MOST = 0.02
FEWEST_ROUNDS = 3
SAMPLE_SECONDS = 0.5


class ContenderFailed(Exception):
    """A contender's process failed; the message ends with its last output."""


@dataclass(frozen=True)
class Options:
    """The options of the command line. `work` is a temporary folder outside the repository."""

    quick: bool
    work: Path
    data: Path | None = None
    rounds: int | None = None
    parts: Sequence[str] = ()
    with_peers: Sequence[str] = ()


@dataclass(frozen=True)
class Contender:
    """`function` is MODULE:FUNCTION. It gets `arguments` (JSON) and the number of the round as `turn`."""

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A finished process. `result` is the return value of its function.

    `peak_rss` sums the resident memory of the process and its descendants, sampled twice a second; pages they
    share count for each. `foreign_cores`: cores kept busy by everything else; `steal`: share of the machine
    taken by its host.
    """

    result: dict[str, Any]
    seconds: float
    cpu_seconds: float
    peak_rss: int
    foreign_cores: float
    steal: float

    @property
    def quiet(self) -> bool:
        return self.foreign_cores <= FOREIGN_MOST and self.steal <= STEAL_MOST


Rounds = list[dict[str, Run]]


def say(text: str) -> None:
    """Prints progress to stderr: stdout is for the document."""
    print(text, file=sys.stderr, flush=True)


def run(contender: Contender, work: Path, turn: int = 0) -> Run:
    """Runs a contender alone. Raises ContenderFailed."""
    arguments, result = work / "arguments.json", work / "answer.json"
    arguments.write_text(json.dumps({**contender.arguments, "turn": turn}))
    result.unlink(missing_ok=True)
    environment = {**os.environ, **dict.fromkeys(THREAD_POOLS, str(CORES)), "PYTHONPATH": str(ROOT)}
    command = [
        contender.python,
        "-m",
        "benchmarks.harness.contender",
        contender.function,
        str(arguments),
        str(result),
    ]
    log = work / "contender.log"
    before, own, started = _machine_times(), cpu_seconds(), monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=work, env={**environment, **contender.environment}
        )
        with _MemorySampler(process.pid) as sampler:
            code = process.wait()
    seconds = monotonic() - started
    cpu = cpu_seconds() - own
    if code or not result.exists():
        words = log.read_text(errors="replace").strip().splitlines()[-12:]
        raise ContenderFailed(f"{contender.name} failed with exit code {code}: " + "\n".join(words))
    busy, steal, total = (b - a for a, b in zip(before, _machine_times(), strict=True))
    foreign = max(0.0, busy - cpu) / seconds
    return Run(json.loads(result.read_text()), seconds, cpu, sampler.peak, foreign, steal / max(total, 1e-9))


def rounds(contenders: Sequence[Contender], count: int, work: Path) -> Rounds:
    """Runs `count` rounds of all contenders, forwards and backwards in turn."""
    done: Rounds = []
    for number in range(count):
        runs: dict[str, Run] = {}
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            runs[contender.name] = process = run(contender, work, number)
            say(f"round {number + 1}/{count} {contender.name}: {process.seconds:.1f} s"
                + ("" if process.quiet else f" (other processes used {process.foreign_cores:.2f} cores)"))  # fmt: skip
        done.append(runs)
    return done


def undisturbed(done: Rounds) -> Rounds:
    """The rounds in which no contender was disturbed; all rounds if these are too few."""
    quiet = [round_ for round_ in done if all(process.quiet for process in round_.values())]
    return quiet if len(quiet) >= FEWEST_ROUNDS else done


def noise(done: Rounds) -> dict[str, Any]:
    """How much other processes used the machine, for the report."""
    everything = [process for round_ in done for process in round_.values()]
    return {
        "rounds": len(done),
        "rounds_used": len(undisturbed(done)),
        "rounds_disturbed": sum(not all(process.quiet for process in round_.values()) for round_ in done),
        "foreign_cores_median": float(np.median([process.foreign_cores for process in everything])),
        "foreign_cores_most": max(process.foreign_cores for process in everything),
        "steal_most": max(process.steal for process in everything),
    }


def estimate(values: Iterable[float]) -> dict[str, Any]:
    """The median and its 95 % bootstrap interval (seeded): {"median", "low", "high", "rounds"}."""
    sample = np.asarray(list(values), dtype=float)
    draws = np.random.default_rng(0).choice(sample, (2_000, len(sample)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"median": float(np.median(sample)), "low": float(low), "high": float(high), "rounds": len(sample)}


class _MemorySampler:
    """Samples the resident bytes of a process and its descendants, and keeps the largest sum."""

    peak = 0

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, tree_rss(self._pid))


def tree_rss(pid: int) -> int:
    """The resident bytes of a process and all its descendants now; 0 if it has ended."""
    import psutil

    total = 0
    try:
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            total += member.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def _machine_times() -> tuple[float, float, float]:
    """CPU seconds of the whole machine since boot: busy, taken by its host, total."""
    fields = [float(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, iowait, irq, softirq, steal = (v / ticks for v in fields)
    busy = user + nice + system + irq + softirq
    return busy, steal, busy + idle + iowait + steal
