"""A run that is killed at any step and resumed ends with the very weights of a run that was never stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from embeddings.embedders import torch_import
from lake.errors import BadInput
from lake.open_lake import OpenLake
from tests.conftest import Say
from training.fit import checkpoint, train_model
from training.models import tensor_file
from training.registry import runs
from training.registry.recipe import Recipe

ROOT = Path(__file__).parents[3]


def _begun(lake: OpenLake, recipe: Recipe) -> runs.Run:
    return train_model.begin(lake, train=["first"], replay=["second"], validation=["held"], recipe=recipe)


class Trainers:
    """The process of `killed.py`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.killed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def train(self, lake: OpenLake, run: str, kill_at: int | None) -> int:
        """Goes on with the run; SIGKILL after the step; the exit code (-9: killed)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(lake.uri, run, file=self._process.stdin, flush=True)
        number = int(self._process.stdout.readline().split()[1])
        for line in self._process.stdout:
            word, value = line.split()
            if word == "over":
                return int(value)
            if kill_at is not None and int(value) >= kill_at:
                os.kill(number, signal.SIGKILL)
        raise AssertionError("the process of the trainers ended")

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.stdout.close()  # type: ignore[union-attr]
        self._process.wait()


def _killed_runs(lake: OpenLake, recipe: Recipe, kills: int, seed: int) -> tuple[int, str]:
    """How many kills landed before the end, and the model's hash; each kill is a few steps after the last one."""
    rng, run, landed, at = random.Random(seed), _begun(lake, recipe), 0, 0
    trainers = Trainers()
    try:
        for _ in range(kills):
            at += rng.randint(1, 6)
            landed += trainers.train(lake, run.id, at) == -signal.SIGKILL
        while (done := runs.get(lake, run.id)).status != "done":
            assert trainers.train(lake, run.id, None) == 0
    finally:
        trainers.close()
    return landed, str(done.artifacts["model"]["sha256"])


def _recipe(tiny: Recipe, **changes: object) -> Recipe:
    # Dropout, augmentation and momentum all carry state across a kill; checkpoints fall in the middle of epochs.
    some = {"dropout": 0.3, "erase": 0.5, "checkpoint_steps": 2, "epochs": 2, "l2_sp": 0.01, "balance": "oversample"}
    return tiny.changed(some | changes)


@pytest.mark.soak
def test_killed_and_resumed_is_never_stopped(stock: OpenLake, tiny: Recipe, say: Say) -> None:
    recipe = _recipe(tiny)
    straight = train_model.train(
        stock, train=["first"], replay=["second"], validation=["held"], recipe=recipe, device="cpu", workers=0
    )
    landed, sha256 = _killed_runs(stock, recipe, kills=2, seed=1)
    assert landed >= 2
    assert sha256 == straight.artifacts["model"]["sha256"]
    say(f"training killed {landed} times and resumed: the same weights bit for bit")


def _values(lake: OpenLake, run: str) -> list[tuple[object, ...]]:
    return [tuple(v for k, v in row.items() if k not in ("run", "at")) for row in runs.metrics(lake, run)]


@pytest.mark.soak
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_many_kills(stock: OpenLake, tiny: Recipe, say: Say, optimiser: str) -> None:
    recipe = _recipe(tiny, epochs=8, optimiser=optimiser, schedule="exponential", warmup=0.5, patience=6)
    straight = train_model.train(
        stock, train=["first"], replay=["second"], validation=["held"], recipe=recipe, device="cpu", workers=0
    )
    total = 0
    for seed in range(4):
        landed, sha256 = _killed_runs(stock, recipe, kills=12, seed=seed)
        total += landed
        assert sha256 == straight.artifacts["model"]["sha256"], seed
    assert total >= 30
    say(f"{optimiser}: training killed {total} times and resumed: the same weights bit for bit")


def test_a_failed_run_continues_and_logs_nothing_twice(stock: OpenLake, tiny: Recipe) -> None:
    recipe = replace(_recipe(tiny), checkpoint_steps=0)
    straight = train_model.train(
        stock, train=["first"], replay=["second"], validation=["held"], recipe=recipe, device="cpu", workers=0
    )
    run = _begun(stock, recipe)

    def stop(said: dict[str, object]) -> None:
        if "metrics" in said:  # logged, and not yet in a checkpoint
            raise RuntimeError("the machine is on fire")

    with pytest.raises(RuntimeError):
        train_model.resume(stock, run.id, device="cpu", workers=0, progress=stop)
    failed = runs.get(stock, run.id)
    assert (failed.status, failed.error) == ("failed", "the machine is on fire")
    done = train_model.resume(stock, run.id[:6], device="cpu", workers=0)
    assert (done.status, done.error) == ("done", None)
    assert done.artifacts["model"]["sha256"] == straight.artifacts["model"]["sha256"]
    assert _values(stock, run.id) == _values(stock, straight.id)
    with pytest.raises(BadInput, match="is done"):
        train_model.resume(stock, run.id)


def test_workers_change_nothing(stock: OpenLake, tiny: Recipe) -> None:
    hashes = {
        train_model.train(
            stock, train=["first"], validation=["held"], recipe=_recipe(tiny, epochs=1), device="cpu", workers=workers
        ).artifacts["model"]["sha256"]
        for workers in (0, 1)
    }
    assert len(hashes) == 1


def test_a_run_is_trained_by_one_process_at_a_time(stock: OpenLake, tiny: Recipe) -> None:
    run = _begun(stock, tiny)
    with (
        checkpoint.locked(runs.folder(stock, run.id)),
        pytest.raises(BadInput, match=f"runs/{run.id} is in use"),
    ):
        train_model.resume(stock, run.id)


def test_a_checkpoint_puts_everything_back(tmp_path: Path) -> None:
    import numpy as np

    torch = torch_import.torch()
    with checkpoint.seeded(7):
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(
            memory_format=torch.channels_last
        )
        optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
        network(torch.rand(2, 3, 8, 8)).sum().backward()
        optimiser.step()
        at = checkpoint.TrainingProgress(epoch=1, step=9, best=0.1 + 0.2, reference={"a@1": 0.5})
        checkpoint.save(tmp_path / "c.safetensors", network, optimiser, at, {"w": torch.ones(2)})
        drawn = random.random(), np.random.rand(), float(torch.rand(()))
        other = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        second = torch.optim.AdamW(other.parameters(), lr=0.1)
        progress, best = checkpoint.load(tmp_path / "c.safetensors", other, second)
        assert (random.random(), np.random.rand(), float(torch.rand(()))) == drawn
    assert progress == at
    assert best is not None
    assert best["w"].tolist() == [1.0, 1.0]
    for one, two in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        for key, value in optimiser.state[p].items():
            assert torch.equal(value, second.state[q][key])


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    torch = torch_import.torch()
    network = torch.nn.Linear(2, 2)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, network, optimiser, checkpoint.TrainingProgress(), None)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BadInput, match="damaged"):
        checkpoint.load(path, network, optimiser)
    tensor_file.write(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(BadInput, match="no checkpoint of this run"):
        checkpoint.load(path, network, optimiser)
