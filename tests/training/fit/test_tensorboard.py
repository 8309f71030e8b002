"""The rows of table metrics as TensorBoard's curves, and nothing at all without a folder."""

from __future__ import annotations

from pathlib import Path

from training.fit.tensorboard import Curves


def test_curves_are_written_where_tensorboard_reads_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    row = {"metric": "loss", "split": "train", "slice": None, "step": 3, "value": 0.5}
    Curves().add([row])
    Curves(tmp_path).add([row, row | {"split": None, "slice": "night@1", "value": None}])
    read = EventAccumulator(str(tmp_path)).Reload()
    assert read.Tags()["scalars"] == ["train/loss"]
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(3, 0.5)]
