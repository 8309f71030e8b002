"""Writes a run's metrics to TensorBoard, too. The table metrics has them anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lake.extras import require


class Curves:
    """Writes to a folder for TensorBoard, or nowhere. Raises MissingExtra if TensorBoard is not installed."""

    def __init__(self, folder: Path | None = None) -> None:
        self._writer: Any = None
        if folder is not None:
            require("tensorboard", "tensorboard", "tensorboard")
            self._writer = require("torch.utils.tensorboard", "tensorboard", "tensorboard").SummaryWriter(str(folder))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds rows as `runs.log` takes them: a curve for each metric of each split or slice."""
        if self._writer is None:
            return
        for row in rows:
            if row["value"] is not None:
                self._writer.add_scalar(f"{row['split'] or row['slice']}/{row['metric']}", row["value"], row["step"])
        self._writer.flush()
