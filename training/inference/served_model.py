"""A registered version of a model, answering: which one a name stands for, and its answers as events of the lake.

A name stands for the promoted version, NAME@V for that one, a run's id for its own. What answers says so in every
event: model, model_version, and in the metadata the run, from which the lineage goes on. It reads the lake and writes
nothing; `batch.py` and `shadow.py` write, the HTTP API leaves that to its clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lake import ids
from lake.errors import BadInput, CouldNot
from lake.slices.naming import unknown
from training.inference.image_preparation import How, Prepared
from training.models import trained_model as models
from training.registry import runs, versions
from training.tasks.task import Prediction, Sample

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import Lake
    from training.registry.versions import Version


@dataclass(frozen=True)
class Source:
    """Who answers: a version of a model, made by a run."""

    model: str
    version: int
    run: str
    task: str

    def prediction_id(self, image_id: str) -> str:
        """The id of this run's one answer to an image: answering again gives the same."""
        return ids.derived_prediction_id(image_id, self.model, str(self.version), None, f"run {self.run}")

    def event(self, answer: Prediction) -> dict[str, Any]:
        """The answer as a row of a prediction log (docs/prediction-logs.md), with the run in its metadata."""
        # Of a task that finds things, having found none is an answer, too.
        kept = {"detection": "boxes", "segmentation": "masks"}.get(self.task)
        lists = ("scores", "boxes", "masks")
        said = {key: value for key, value in answer.row().items() if key not in lists or value or key == kept}
        named = {"model": self.model, "model_version": str(self.version), "task": self.task}
        return named | said | {"metadata": {"run": self.run}}


def source(lake: Lake, name: str) -> Source:
    """Who answers for NAME (what is promoted), NAME@V, or a run's id.

    Raises BadInput, with the nearest names, when nothing has this name; and when no version of the model is promoted.
    """
    base, at, _ = name.partition("@")
    known = versions.list(lake)
    if not at and any(one.model == base for one in known):
        found = versions.promoted(lake, base)
        if found is None:
            there = [one.id for one in known if one.model == base]
            raise BadInput(
                f"no version of model {base!r} is promoted; name one ({', '.join(there[-5:])}) or promote one with "
                f"lakeloop models promote {there[-1]}"
            )
        return _source(lake, found)
    found = next((one for one in known if name in (one.id, one.run)), None)
    if found is None:
        raise unknown("registered model", name, {one.id if at else one.model for one in known})
    return _source(lake, found)


def _source(lake: Lake, version: Version) -> Source:
    if version.status == "retired":
        raise BadInput(f"{version.id} is retired; take it back first: lakeloop models register {version.run}")
    return Source(version.model, version.version, version.run, runs.get(lake, version.run).task)


class Answering:
    """A run's model, loaded: it answers to files that `image_preparation.prepare_many` prepared as `how` says.

    A probe embeds with its lake's embedder, loaded once. Not for several threads at once.
    """

    def __init__(self, lake: Lake, run: str, device: str = "cpu") -> None:
        found = models.load(lake, run, device)
        self.run = found.run
        self._embedder: Embedder | None = None
        self.how: How
        if isinstance(found, models.NetworkModel):
            self.how = found.preparation
        elif isinstance(found, models.ProbeModel):
            from embeddings.embedders import embedder as embedders

            self._embedder = embedders.for_lake(lake, embedders.record_of(lake, found.embedder))
            self.how = self._embedder.spec.preprocessing
        else:
            raise CouldNot(f"run {run} is a {type(found).__name__}, which answers to no files")
        self.model = found

    def predictions(self, names: Sequence[str], prepared: Sequence[Prepared]) -> list[Prediction | str]:
        """One answer a file, in order; where the model has none, the reason."""
        if not prepared:
            return []
        found: dict[str, Prediction]
        if isinstance(self.model, models.NetworkModel):
            from embeddings.embedders.torch_import import torch

            samples = [one for one in prepared if isinstance(one, Sample)]
            with torch().no_grad():
                said = self.model.task.predictions(self.model.network, samples, self.model.classes)
            found = {one.image_id: one for one in said}
        else:
            assert self._embedder is not None
            pixels = [one for one in prepared if isinstance(one, np.ndarray)]
            embedded = self._embedder.embed_batch(pixels)
            kept = [names[i] for i in embedded.kept.tolist()]
            found = {one.image_id: one for one in self.model.predictions_from_vectors(kept, embedded.vectors)}
        return [found.get(name, "the network gave no finite vector") for name in names]
