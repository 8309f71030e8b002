"""Tasks by name: classification, segmentation, detection."""

from __future__ import annotations

from lake.errors import BadInput
from lake.formats.annotation import CLASSIFICATION, DETECTION, SEGMENTATION, TASKS
from training.tasks.classification import Classification
from training.tasks.detection import Detection
from training.tasks.segmentation import Segmentation
from training.tasks.task import Task


def get(name: str, label_smoothing: float = 0.0) -> Task:
    """The task of that name. `label_smoothing` is only for classification. Raises BadInput for an unknown name."""
    if name == CLASSIFICATION:
        return Classification(label_smoothing)
    if name == SEGMENTATION:
        return Segmentation()
    if name == DETECTION:
        return Detection()
    raise BadInput(f"unknown task {name!r}; use one of {', '.join(TASKS)}")
