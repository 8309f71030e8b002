"""Trained models: saved as safetensors in the run's folder; loaded by run, NAME or NAME@VERSION; and their predictions.

A fine-tuned network predicts from pixels. A probe predicts from vectors that the lake has, or embeds new images. Either
is one file; its header has everything that is needed to build the model again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from embeddings.embedders import torch_import
from lake.errors import BadInput
from lake.slices.naming import unknown
from training.data.augmentation import Preparation, whole
from training.models import tensor_file
from training.registry import runs, versions
from training.registry.recipe import Recipe
from training.registry.runs import Run
from training.tasks import task_registry
from training.tasks.task import Prediction, Sample, Task

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from lake.storage.store import Lake
    from training.models.probe import Probe

MODEL, INITIAL, ITEMS, RECIPE = "model.safetensors", "initial.safetensors", "items.parquet", "recipe.json"
BATCH = 64


class TrainedModel(Protocol):
    """`run`: the run that trained it. `classes`: in the order of its outputs."""

    run: Run
    classes: tuple[str, ...]

    def predictions(self, images: Iterable[tuple[str, Image]]) -> Iterator[Prediction]:
        """Predictions for (name, upright RGB image), in order."""
        ...

    def predictions_of(self, lake: Lake, image_ids: Sequence[str]) -> Iterator[Prediction]:
        """Predictions for images of the lake, in order, without those that cannot be read (probe: have no vector)."""
        ...


class NetworkModel:
    """A fine-tuned network, in evaluation mode."""

    def __init__(
        self, run: Run, network: torch.nn.Module, task: Task, preparation: Preparation, device: str = "cpu"
    ) -> None:
        self.run, self.classes, self.task, self.preparation = run, run.classes, task, preparation
        self.network = network.to(device).eval()

    def predictions(self, images: Iterable[tuple[str, Image]]) -> Iterator[Prediction]:
        source = iter(images)
        while part := [*islice(source, BATCH)]:
            yield from self._predict([whole(name, image, self.preparation) for name, image in part])

    def predictions_of(self, lake: Lake, image_ids: Sequence[str], workers: int = 0) -> Iterator[Prediction]:
        """As in `TrainedModel`. `workers`: processes that decode."""
        from lake.formats.annotation import GroundTruth
        from training.data.feed import Draw, Feed
        from training.data.splits import TrainingImage

        unlabelled = GroundTruth(self.run.task)
        draws = [Draw(TrainingImage(name, unlabelled)) for name in image_ids]
        parts = (draws[i : i + BATCH] for i in range(0, len(draws), BATCH))
        with Feed(lake, image_ids, workers) as feed:
            for samples in feed.batches(parts, self.preparation):
                if samples:
                    yield from self._predict(samples)

    def _predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        with torch_import.torch().no_grad():
            return self.task.predictions(self.network, samples, self.classes)


class ProbeModel:
    """A probe on an embedder's vectors. `temperature` divides its logits."""

    def __init__(self, run: Run, probe: Probe, embedder: str, temperature: float) -> None:
        self.run, self.classes, self.probe, self.embedder = run, tuple(probe.classes), probe, embedder
        self.temperature = temperature
        self._lake: Lake | None = None

    def bound(self, lake: Lake) -> ProbeModel:
        """This model; it embeds new images with the weights of this lake's embedder."""
        self._lake = lake
        return self

    def predictions(self, images: Iterable[tuple[str, Image]]) -> Iterator[Prediction]:
        from embeddings.embedders import embedder as embedders
        from embeddings.embedders.checked_batch import embed_checked
        from embeddings.embedders.preprocess import square

        if self._lake is None:
            raise BadInput("a probe predicts for new images only in the lake whose embedder it was trained with")
        embedder = embedders.for_lake(self._lake, embedders.record_of(self._lake, self.embedder))
        preprocessing, source = embedder.spec.preprocessing, iter(images)
        while part := [*islice(source, BATCH)]:
            pixels = [np.asarray(im) if preprocessing is None else square(im, preprocessing) for _, im in part]
            embedded = embed_checked(embedder, pixels)
            yield from self.predictions_from_vectors([part[i][0] for i in embedded.kept], embedded.vectors)

    def predictions_of(self, lake: Lake, image_ids: Sequence[str]) -> Iterator[Prediction]:
        from embeddings.embedders.embedder import record_of
        from lake.storage.vectors import image_vectors

        names, vectors = image_vectors(lake, record_of(lake, self.embedder), image_ids)
        row = {name: i for i, name in enumerate(names)}
        with_vector = [name for name in image_ids if name in row]
        yield from self.predictions_from_vectors(with_vector, vectors[[row[name] for name in with_vector]])

    def predictions_from_vectors(self, names: Sequence[str], vectors: np.ndarray) -> list[Prediction]:
        """Predictions for vectors (n, dim) of images with these names."""
        from training.tasks.classification import from_probabilities, softmax

        if not len(names):
            return []
        probabilities = np.maximum(self.probe.probabilities(vectors), 1e-300)
        return from_probabilities(names, softmax(np.log(probabilities) / self.temperature), self.classes)


# Saving ------------------------------------------------------------------------------------------------------------


def begin(
    folder: Path, recipe: Recipe, items: pa.Table, network: torch.nn.Module | None, drawn: Sequence[str], warm: bool
) -> None:
    """Writes the start of a run. `drawn`: parameters that begin at random; `warm`: the weights were trained before."""
    import pyarrow.parquet as pq

    pq.write_table(items, folder / ITEMS)
    (folder / RECIPE).write_text(json.dumps(json.loads(recipe.json()), indent=2) + "\n", encoding="utf-8")
    if network is not None:
        tensor_file.write(folder / INITIAL, network.state_dict(), {"drawn": [*drawn], "warm": warm})


def read_items(folder: Path) -> pa.Table:
    """The splits of a run, a table with the schema `splits.ITEMS`."""
    import pyarrow.parquet as pq

    if not (folder / ITEMS).exists():
        raise BadInput(f"run {folder.name} was stopped before its start was saved; train again")
    return pq.read_table(folder / ITEMS)


def initial(
    folder: Path, task: Task, recipe: Recipe, classes: Sequence[str]
) -> tuple[torch.nn.Module, dict[str, torch.Tensor], dict[str, Any]]:
    """The network at the start of its run, its weights, and the facts that `begin` wrote (drawn, warm)."""
    if not (folder / INITIAL).exists():
        raise BadInput(f"run {folder.name} was stopped before its start was saved; train again")
    state, facts = tensor_file.read(folder / INITIAL)
    network = task.network(recipe.architecture, classes, pretrained=False, dropout=recipe.dropout)
    network.load_state_dict(state)
    return network, state, facts


def save(
    folder: Path, network: torch.nn.Module, recipe: Recipe, classes: Sequence[str], preparation: Preparation
) -> Path:
    """Writes a network as the run's model."""
    header = {
        "format": 1,
        "kind": "finetune",
        "task": recipe.task,
        "architecture": recipe.architecture,
        "classes": [*classes],
        "side": preparation.side,
        "geometry": preparation.geometry,
    }
    tensor_file.write(folder / MODEL, network.state_dict(), header)
    return folder / MODEL


def files(folder: Path) -> list[Path]:
    """The files of a finished run."""
    return [folder / name for name in (MODEL, ITEMS, RECIPE) if (folder / name).exists()]


# Loading -----------------------------------------------------------------------------------------------------------


def load(lake: Lake, name: str, device: str = "cpu") -> TrainedModel:
    """The model of a run id, of NAME@VERSION, or of NAME: the promoted version, else that of the newest run.

    Raises BadInput if there is no such model, if its run is not done, or if its file is not the recorded one.
    """
    run = find(lake, name)
    path = runs.model_file(lake, run)
    state, header = tensor_file.read(path)
    if header["kind"] == "probe":
        return _probe(run, state, header).bound(lake)
    task = task_registry.get(header["task"])
    network = task.network(header["architecture"], header["classes"], pretrained=False)
    network.load_state_dict(state)
    index = {label: i for i, label in enumerate(header["classes"])}
    return NetworkModel(run, network, task, Preparation(header["side"], header["geometry"], index), device)


def state_of(lake: Lake, run: Run) -> dict[str, torch.Tensor]:
    """The tensors of a finished run's network. Raises BadInput for a probe."""
    if run.kind == "probe":
        raise BadInput(f"run {run.id} is a probe on stored vectors: it has no network to continue from")
    return tensor_file.read(runs.model_file(lake, run))[0]


def find(lake: Lake, name: str) -> Run:
    """The run of a run id, NAME@VERSION or NAME. NAME is the promoted version, else the newest run that is done and not
    retired. Raises BadInput with the nearest names.
    """
    if "@" in name:
        return runs.get(lake, versions.get(lake, name).run)
    if (promoted := versions.promoted(lake, name)) is not None:
        return runs.get(lake, promoted.run)
    rows = lake.scan("runs", ["id", "model"]).to_pylist()
    if any(row["id"] == name for row in rows):
        return runs.get(lake, name)
    retired = {version.run for version in versions.list(lake, name) if version.status == "retired"}
    done = [run for run in runs.list(lake, model=name) if run.status == "done" and run.id not in retired]
    if done:
        return done[0]
    if any(row["model"] == name for row in rows):
        raise BadInput(f"no run of model {name!r} is done and not retired; see: lakeloop runs list")
    raise unknown("model or run", name, {row[key] for row in rows for key in ("id", "model")})


def save_probe(folder: Path, probe: Probe, embedder: str, temperature: float) -> Path:
    """Writes a probe as the run's model."""
    torch = torch_import.torch()
    arrays = {"weights": probe.weights, "bias": probe.bias}
    if probe.hidden is not None:
        arrays |= {"hidden/weights": probe.hidden[0], "hidden/bias": probe.hidden[1]}
    header = {
        "format": 1,
        "kind": "probe",
        "task": "classification",
        "classes": [*probe.classes],
        "embedder": embedder,
        "temperature": temperature,
    }
    tensor_file.write(folder / MODEL, {name: torch.from_numpy(array) for name, array in arrays.items()}, header)
    return folder / MODEL


def _probe(run: Run, state: dict[str, torch.Tensor], header: dict[str, Any]) -> ProbeModel:
    from training.models.probe import Probe

    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    hidden = (arrays["hidden/weights"], arrays["hidden/bias"]) if "hidden/weights" in arrays else None
    probe = Probe(tuple(header["classes"]), arrays["weights"], arrays["bias"], hidden)
    return ProbeModel(run, probe, header["embedder"], header["temperature"])
