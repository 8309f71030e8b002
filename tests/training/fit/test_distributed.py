"""Two processes train one model: as torchrun starts them, on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lake.errors import BadInput
from lake.open_lake import OpenLake
from training.fit import train_model
from training.fit.distributed import Processes
from training.registry import runs
from training.registry.recipe import Recipe

ROOT = Path(__file__).parents[3]


@pytest.mark.soak
def test_two_processes_train_one_model(stock: OpenLake, tiny: Recipe) -> None:
    run = train_model.begin(stock, train=["first"], validation=["held"], recipe=tiny.changed({"epochs": 6}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "search_app.cli.main", "train", "--resume", run.id, "--lake", stock.uri,
             "--device", "cpu", "--workers", "0"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            env=os.environ | {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                              "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    for process in both:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said.decode()[-2_000:]
    done = runs.get(stock, run.id)
    assert done.status == "done"
    assert done.data["result"]["validation"]["balanced_accuracy"] >= 0.7
    # Each process saw half of every batch.
    assert [r["n"] for r in runs.metrics(stock, run.id) if r["split"] == "train"] == [24] * 6


def test_a_missing_device_is_refused() -> None:
    from embeddings.embedders import torch_import

    with pytest.raises(BadInput, match="not one of auto, cpu, cuda"):
        Processes("tpu")
    if not torch_import.torch().cuda.is_available():
        with pytest.raises(BadInput, match="no CUDA device"):
            Processes("cuda")
