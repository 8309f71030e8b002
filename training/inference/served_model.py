"""Predicts with a registered version: finds it by name, loads its model, makes events.

NAME means the promoted version, NAME@V that version, and the id of a run its version. Every event has the model, the
model_version and, in its metadata, the run, which links it to the lineage. This module reads the lake and writes
nothing: `batch.py` and `shadow.py` write; the HTTP API returns events to its clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lake import ids
from lake.errors import BadInput, CouldNot
from lake.slices.naming import unknown
from training.inference.image_preparation import ImagePreparation, PreparedImage
from training.models import trained_model
from training.registry import runs, versions
from training.tasks.task import Prediction, Sample

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import Lake
    from training.registry.versions import Version


@dataclass(frozen=True)
class ServedVersion:
    """A version of a model that predicts, and the run that made it."""

    model: str
    version: int
    run: str
    task: str

    def prediction_id(self, image_id: str) -> str:
        """The id of this run's prediction for an image. Predicting again gives the same id."""
        return ids.derived_prediction_id(image_id, self.model, str(self.version), None, f"run {self.run}")

    def event(self, prediction: Prediction) -> dict[str, Any]:
        """The prediction as a row of a prediction log (docs/prediction-logs.md), with the run in its metadata."""
        # For detection and segmentation an empty list is a result: nothing was found.
        required = {"detection": "boxes", "segmentation": "masks"}.get(self.task)
        lists = ("scores", "boxes", "masks")
        row = {key: value for key, value in prediction.row().items() if key not in lists or value or key == required}
        named = {"model": self.model, "model_version": str(self.version), "task": self.task}
        return named | row | {"metadata": {"run": self.run}}


def served_version(lake: Lake, name: str) -> ServedVersion:
    """The version that NAME (the promoted one), NAME@V or the id of a run means.

    Raises BadInput, with the nearest names, if there is none, or if no version of the model is promoted.
    """
    model, at, _ = name.partition("@")
    known = versions.list(lake)
    if not at and any(version.model == model for version in known):
        promoted = versions.promoted(lake, model)
        if promoted is None:
            version_ids = [version.id for version in known if version.model == model]
            raise BadInput(
                f"no version of model {model!r} is promoted; name one ({', '.join(version_ids[-5:])}) or promote one "
                f"with lakeloop models promote {version_ids[-1]}"
            )
        return _served(lake, promoted)
    match = next((version for version in known if name in (version.id, version.run)), None)
    if match is None:
        raise unknown("registered model", name, {version.id if at else version.model for version in known})
    return _served(lake, match)


def _served(lake: Lake, version: Version) -> ServedVersion:
    if version.status == "retired":
        raise BadInput(f"{version.id} is retired; use it again with: lakeloop models register {version.run}")
    return ServedVersion(version.model, version.version, version.run, runs.get(lake, version.run).task)


class Predictor:
    """The loaded model of a run. It predicts files that `image_preparation.prepare_many` has prepared as `preparation`.

    A probe embeds images with the embedder of its lake, which is loaded once. Not thread-safe.
    """

    def __init__(self, lake: Lake, run: str, device: str = "cpu") -> None:
        model = trained_model.load(lake, run, device)
        self.run = model.run
        self._embedder: Embedder | None = None
        self.preparation: ImagePreparation
        if isinstance(model, trained_model.NetworkModel):
            self.preparation = model.preparation
        elif isinstance(model, trained_model.ProbeModel):
            from embeddings.embedders import embedder as embedders

            self._embedder = embedders.for_lake(lake, embedders.record_of(lake, model.embedder))
            self.preparation = self._embedder.spec.preprocessing
        else:
            raise CouldNot(f"run {run} is a {type(model).__name__}, which cannot predict files")
        self.model = model

    def predictions(self, image_ids: Sequence[str], prepared: Sequence[PreparedImage]) -> list[Prediction | str]:
        """One prediction for each image, in order; where the model gives none, the reason."""
        if not prepared:
            return []
        reasons: dict[str, str] = {}
        if isinstance(self.model, trained_model.NetworkModel):
            from embeddings.embedders.torch_import import torch

            samples = [sample for sample in prepared if isinstance(sample, Sample)]
            with torch().no_grad():
                predictions = self.model.task.predictions(self.model.network, samples, self.model.classes)
        else:
            from embeddings.embedders.checked_batch import embed_checked

            assert self._embedder is not None
            pixels = [array for array in prepared if isinstance(array, np.ndarray)]
            embedded = embed_checked(self._embedder, pixels)
            valid_ids = [image_ids[i] for i in embedded.kept]
            predictions = self.model.predictions_from_vectors(valid_ids, embedded.vectors)
            reasons = {image_ids[i]: reason for i, reason in embedded.reasons.items()}
        by_id: dict[str, Prediction] = {prediction.image_id: prediction for prediction in predictions}
        return [by_id.get(image_id, reasons.get(image_id, "the model gave no prediction")) for image_id in image_ids]
