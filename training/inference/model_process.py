"""The process beside a server that answers: models stay loaded in it, and what it does takes nothing from the server.

A `lake.workers.WorkerPool` of one runs `work`. It runs at a lower priority than the server and on one thread, so that
taking events in comes first (docs/predict.md has the measurement). It is given prepared images only: strangers' bytes
are decoded elsewhere.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lake.errors import LakeloopError

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.inference.image_preparation import How, Prepared
    from training.inference.served_model import Answering
    from training.tasks.task import Prediction

WORK = f"{__name__}:work"
# Loaded models: what is promoted of a few names, and what was promoted before.
KEPT = 4
NICENESS = 10

_lakes: dict[str, Lake] = {}
_models: OrderedDict[tuple[str, str], Answering] = OrderedDict()


@dataclass(frozen=True)
class Failed:
    """The model cannot be had; a sentence for people."""

    reason: str


def work(
    uri: str, run: str, names: Sequence[str] = (), prepared: Sequence[Prepared] = ()
) -> tuple[How, list[Prediction | str]] | Failed:
    """How the run's model wants images, and its answers to those given (none: it is only loaded)."""
    try:
        answering = _loaded(uri, run)
    except (LakeloopError, OSError) as error:
        return Failed(str(error))
    return answering.how, answering.predictions(names, prepared) if names else []


def _loaded(uri: str, run: str) -> Answering:
    key = (uri, run)
    if key in _models:
        _models.move_to_end(key)
        return _models[key]
    from embeddings.embedders.torch_import import torch
    from lake.storage import opening
    from training.inference.served_model import Answering

    if not _lakes:
        os.nice(NICENESS)
    if uri not in _lakes:
        _lakes[uri] = opening.open(uri)
    made = Answering(_lakes[uri], run)
    torch().set_num_threads(1)
    _models[key] = made
    while len(_models) > KEPT:
        _models.popitem(last=False)
    return made
