"""The process beside a server that predicts: it keeps models loaded, at a lower priority.

A `lake.images.workers.WorkerPool` of one process runs `work`, on one thread, so that ingesting events comes first
(docs/predict.md has the measurement). It gets prepared images only: other processes decode untrusted bytes.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lake.errors import LakeloopError

# The pool reads the annotations of `work`.
from training.inference.image_preparation import ImagePreparation, PreparedImage
from training.tasks.task import Prediction

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.inference.served_model import Predictor

WORK = f"{__name__}:work"
# Loaded models: the promoted versions of a few models, and the versions before them.
MOST_LOADED = 4
NICENESS = 10

_lakes: dict[str, Lake] = {}
_models: OrderedDict[tuple[str, str], Predictor] = OrderedDict()


@dataclass(frozen=True)
class ModelUnavailable:
    """The model cannot be loaded; `reason` is a message for users."""

    reason: str


def work(
    uri: str, run: str, names: Sequence[str] = (), prepared: Sequence[PreparedImage] = ()
) -> tuple[ImagePreparation, list[Prediction | str]] | ModelUnavailable:
    """How the run's model needs images prepared, and its predictions for `prepared` (without any, only loads it)."""
    try:
        predictor = _loaded(uri, run)
    except (LakeloopError, OSError) as error:
        return ModelUnavailable(str(error))
    return predictor.preparation, predictor.predictions(names, prepared) if names else []


def _loaded(uri: str, run: str) -> Predictor:
    key = (uri, run)
    if key in _models:
        _models.move_to_end(key)
        return _models[key]
    from embeddings.embedders.torch_import import torch
    from lake.storage import opening
    from training.inference.served_model import Predictor

    if not _lakes:
        os.nice(NICENESS)
    if uri not in _lakes:
        _lakes[uri] = opening.open(uri)
    predictor = Predictor(_lakes[uri], run)
    torch().set_num_threads(1)
    _models[key] = predictor
    while len(_models) > MOST_LOADED:
        _models.popitem(last=False)
    return predictor
