"""A trained model: kept as safetensors in its run's folder, loaded by run, name or NAME@VERSION, and asked.

A fine-tuned network answers to pixels; a probe answers to vectors that the lake has already, or embeds what it is
given. Either is one file, whose header says everything needed to build it again.
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
from training.tasks.task import Prediction, Task

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from lake.storage.store import Lake
    from training.models.probe import Probe

MODEL, INITIAL, ITEMS, RECIPE = "model.safetensors", "initial.safetensors", "items.parquet", "recipe.json"
BATCH = 64


class Model(Protocol):
    """`run`: the run that made it; `classes`: what it tells apart, in the order of its outputs."""

    run: Run
    classes: tuple[str, ...]

    def predictions(self, images: Iterable[tuple[str, Image]]) -> Iterator[Prediction]:
        """Answers to (name, upright RGB image), in order."""
        ...

    def predictions_of(self, lake: Lake, image_ids: Sequence[str]) -> Iterator[Prediction]:
        """Answers to images of the lake, in order; those that cannot be read (a probe: have no vector) left out."""
        ...


class NetworkModel:
    """A fine-tuned network, in evaluation mode."""

    def __init__(self, run: Run, network: torch.nn.Module, asked: Task, how: Preparation, device: str = "cpu") -> None:
        self.run, self.classes, self.task, self.how = run, run.classes, asked, how
        self.network = network.to(device).eval()

    def predictions(self, images: Iterable[tuple[str, Image]]) -> Iterator[Prediction]:
        source = iter(images)
        while part := [*islice(source, BATCH)]:
            samples = [whole(name, image, self.how) for name, image in part]
            with torch_import.torch().no_grad():
                yield from self.task.predictions(self.network, samples, self.classes)

    def predictions_of(self, lake: Lake, image_ids: Sequence[str], workers: int = 0) -> Iterator[Prediction]:
        """As in `Model`; `workers` processes decode meanwhile."""
        from lake.formats.annotation import GroundTruth
        from training.data.feed import Draw, Feed
        from training.data.splits import Item

        nothing = GroundTruth(self.run.task)
        parts = (image_ids[i : i + BATCH] for i in range(0, len(image_ids), BATCH))
        with Feed(lake, image_ids, workers) as feed:
            for samples in feed.batches(([Draw(Item(n, nothing)) for n in part] for part in parts), self.how):
                if samples:
                    with torch_import.torch().no_grad():
                        answered = self.task.predictions(self.network, samples, self.classes)
                    yield from answered


class ProbeModel:
    """A probe on an embedder's vectors. `temperature` divides its logits."""

    def __init__(self, run: Run, probe: Probe, embedder: str, temperature: float) -> None:
        self.run, self.classes, self.probe, self.embedder = run, tuple(probe.classes), probe, embedder
        self.temperature = temperature
        self._lake: Lake | None = None

    def bound(self, lake: Lake) -> ProbeModel:
        """The same; new images are embedded with the weights of this lake's embedder."""
        self._lake = lake
        return self

    def predictions(self, images: Iterable[tuple[str, Image]]) -> Iterator[Prediction]:
        from embeddings.embedders import embedder as embedders
        from embeddings.embedders.preprocess import square

        if self._lake is None:
            raise BadInput("a probe answers to new images only in the lake whose embedder it was made with")
        made = embedders.for_lake(self._lake, embedders.record_of(self._lake, self.embedder))
        how, source = made.spec.preprocessing, iter(images)
        while part := [*islice(source, BATCH)]:
            pixels = [np.asarray(image) if how is None else square(image, how) for _, image in part]
            found = made.embed_batch(pixels)
            yield from self.predictions_from_vectors([part[i][0] for i in found.kept], found.vectors)

    def predictions_of(self, lake: Lake, image_ids: Sequence[str]) -> Iterator[Prediction]:
        from embeddings.embedders.embedder import record_of
        from lake.storage.vectors import image_vectors

        names, vectors = image_vectors(lake, record_of(lake, self.embedder), image_ids)
        place = {name: i for i, name in enumerate(names)}
        there = [name for name in image_ids if name in place]
        yield from self.predictions_from_vectors(there, vectors[[place[name] for name in there]])

    def predictions_from_vectors(self, names: Sequence[str], vectors: np.ndarray) -> list[Prediction]:
        """Answers to vectors (n, dim), under these names."""
        from training.tasks.classification import from_probabilities, softmax

        if not len(names):
            return []
        chances = np.maximum(self.probe.probabilities(vectors), 1e-300)
        return from_probabilities(names, softmax(np.log(chances) / self.temperature), self.classes)


# Keeping -----------------------------------------------------------------------------------------------------------


def begin(
    folder: Path, recipe: Recipe, items: pa.Table, network: torch.nn.Module | None, drawn: Sequence[str], warm: bool
) -> None:
    """Writes what a run starts from. `drawn`: parameters that began at random; `warm`: it answers already."""
    import pyarrow.parquet as pq

    pq.write_table(items, folder / ITEMS)
    (folder / RECIPE).write_text(json.dumps(json.loads(recipe.json()), indent=2) + "\n", encoding="utf-8")
    if network is not None:
        tensor_file.write(folder / INITIAL, network.state_dict(), {"drawn": [*drawn], "warm": warm})


def read_items(folder: Path) -> pa.Table:
    """The splits of a run, as `data.ITEMS` has them."""
    import pyarrow.parquet as pq

    if not (folder / ITEMS).exists():
        raise BadInput(f"run {folder.name} was stopped before it had begun; train anew")
    return pq.read_table(folder / ITEMS)


def initial(
    folder: Path, asked: Task, recipe: Recipe, classes: Sequence[str]
) -> tuple[torch.nn.Module, dict[str, torch.Tensor], dict[str, Any]]:
    """The network as its run began, its weights, and what is known of them (drawn, warm)."""
    if not (folder / INITIAL).exists():
        raise BadInput(f"run {folder.name} was stopped before it had begun; train anew")
    state, said = tensor_file.read(folder / INITIAL)
    network = asked.network(recipe.architecture, classes, pretrained=False, dropout=recipe.dropout)
    network.load_state_dict(state)
    return network, state, said


def save(folder: Path, network: torch.nn.Module, recipe: Recipe, classes: Sequence[str], how: Preparation) -> Path:
    """Writes a network as the run's model."""
    said = {
        "format": 1,
        "kind": "finetune",
        "task": recipe.task,
        "architecture": recipe.architecture,
        "classes": [*classes],
        "side": how.side,
        "geometry": how.geometry,
    }
    tensor_file.write(folder / MODEL, network.state_dict(), said)
    return folder / MODEL


def files(folder: Path) -> list[Path]:
    """The files of a finished run."""
    return [folder / name for name in (MODEL, ITEMS, RECIPE) if (folder / name).exists()]


# Loading -----------------------------------------------------------------------------------------------------------


def load(lake: Lake, name: str, device: str = "cpu") -> Model:
    """The model of a run (by its id), of NAME@VERSION, or NAME: the promoted version, else the newest run's.

    Raises BadInput when there is none, when its run is not done, and when its file is not the one that was recorded.
    """
    run = find(lake, name)
    path = runs.model_file(lake, run)
    state, said = tensor_file.read(path)
    if said["kind"] == "probe":
        return _probe(run, state, said).bound(lake)
    asked = task_registry.get(said["task"])
    network = asked.network(said["architecture"], said["classes"], pretrained=False)
    network.load_state_dict(state)
    index = {one: place for place, one in enumerate(said["classes"])}
    return NetworkModel(run, network, asked, Preparation(said["side"], said["geometry"], index), device)


def state_of(lake: Lake, run: Run) -> dict[str, torch.Tensor]:
    """The tensors of a finished run's network. Raises BadInput for a probe."""
    if run.kind == "probe":
        raise BadInput(f"run {run.id} is a probe on stored vectors: there is no network to go on from")
    return tensor_file.read(runs.model_file(lake, run))[0]


def find(lake: Lake, name: str) -> Run:
    """The run that a run's id, NAME@VERSION or NAME stands for: the promoted version, else the newest run that is done
    and not retired. Raises BadInput, naming the nearest.
    """
    if "@" in name:
        return runs.get(lake, versions.get(lake, name).run)
    if (promoted := versions.promoted(lake, name)) is not None:
        return runs.get(lake, promoted.run)
    rows = lake.scan("runs", ["id", "model"]).to_pylist()
    if any(row["id"] == name for row in rows):
        return runs.get(lake, name)
    retired = {one.run for one in versions.list(lake, name) if one.status == "retired"}
    done = [run for run in runs.list(lake, model=name) if run.status == "done" and run.id not in retired]
    if done:
        return done[0]
    if any(row["model"] == name for row in rows):
        raise BadInput(f"no run of model {name!r} is done and in use; see: lakeloop runs list")
    raise unknown("model or run", name, {row[key] for row in rows for key in ("id", "model")})


def save_probe(folder: Path, probe: Probe, embedder: str, temperature: float) -> Path:
    """Writes a probe as the run's model."""
    torch = torch_import.torch()
    arrays = {"weights": probe.weights, "bias": probe.bias}
    if probe.hidden is not None:
        arrays |= {"hidden/weights": probe.hidden[0], "hidden/bias": probe.hidden[1]}
    said = {
        "format": 1,
        "kind": "probe",
        "task": "classification",
        "classes": [*probe.classes],
        "embedder": embedder,
        "temperature": temperature,
    }
    tensor_file.write(folder / MODEL, {name: torch.from_numpy(array) for name, array in arrays.items()}, said)
    return folder / MODEL


def _probe(run: Run, state: dict[str, torch.Tensor], said: dict[str, Any]) -> ProbeModel:
    from training.models.probe import Probe

    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    hidden = (arrays["hidden/weights"], arrays["hidden/bias"]) if "hidden/weights" in arrays else None
    probe = Probe(tuple(said["classes"]), arrays["weights"], arrays["bias"], hidden)
    return ProbeModel(run, probe, said["embedder"], said["temperature"])
