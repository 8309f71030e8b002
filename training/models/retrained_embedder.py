"""Registers the features of a retrained classifier as an embedder of the lake, for search and clusters.

The backbone's weights are stored with the lake by their hash, as those of any embedder. Images are prepared as in
training. The lake can compute vectors anywhere, without the run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from embeddings.embedders import embedder as embedders
from embeddings.embedders import weights
from embeddings.embedders.specs import OPEN_CLIP_PREFIX, SPECS, Preprocessing
from lake.errors import BadInput, WeightsMismatch
from lake.storage import store
from training.models import trained_model as models
from training.registry import versions

if TYPE_CHECKING:
    from lake.storage.store import EmbedderRecord, Lake
    from training.registry.runs import Run


def register(lake: Lake, name: str, embedder_name: str | None = None) -> EmbedderRecord:
    """Makes the features of a model (NAME, NAME@V or a run) an embedder of the lake, before its first vector.

    Its name is ARCHITECTURE@MODEL-VERSION, or ARCHITECTURE@MODEL-RUN for a run without a version, unless
    `embedder_name` is given. Calling it again changes nothing. Raises BadInput for a model without such features,
    WeightsMismatch if the lake has other vectors under the name.
    """
    from safetensors.torch import save_file

    run = models.find(lake, name)
    architecture = _architecture(run)
    embedder_name = embedder_name or f"{architecture}@{run.model}-{_number(lake, run)}"
    if embedder_name.partition("@")[0] != architecture or "@" not in embedder_name:
        raise BadInput(f"run {run.id} is a {architecture}: name its embedder {architecture}@NAME, not {embedder_name}")
    weights_source = f"run {run.id} of model {run.model}"
    existing = next((record for record in lake.embedders() if record.name == embedder_name), None)
    if existing is not None and existing.weights == weights_source:
        return existing
    model = models.load(lake, run.id)
    assert isinstance(model, models.NetworkModel)
    tensors = model.network.get_submodule("backbone").state_dict()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "backbone.safetensors")
        save_file({k: v.contiguous() for k, v in tensors.items()}, file)
        embedder = embedders.NetworkEmbedder(embedder_name, file, engine="torch", preprocessing=_preprocessing(model))
    if existing is not None and existing.weights_sha256 is not None:
        if existing.weights_sha256 != embedder.weights_sha256:
            raise WeightsMismatch(
                f"the lake's embedder {embedder_name} has weights {existing.weights_sha256[:12]}, run {run.id} has "
                f"{embedder.weights_sha256[:12]}: choose another name with --embedder {architecture}@NAME"
            )
        return existing
    weights.store(lake, embedder.module, embedder.weights_sha256)
    lake.register_embedder(embedder_name)
    assert embedder.spec.preprocessing is not None
    record = store.EmbedderRecord(
        embedder_name,
        embedders.new_record(embedder_name).column,
        embedder.spec.dim,
        embedder.weights_sha256,
        weights_source,
        embedder.spec.preprocessing.json(),
        f"retrained from {embedder.spec.licence}" if run.recipe.pretrained else None,
        False,
    )
    lake.bind_embedder(record)
    return record


def _architecture(run: Run) -> str:
    if run.kind != "finetune" or run.task != "classification":
        kind = "probe" if run.kind == "probe" else f"{run.task} network"
        raise BadInput(f"run {run.id} is a {kind}; only a fine-tuned classifier's features can be an embedder")
    name = run.recipe.architecture
    if name not in SPECS and not name.startswith(OPEN_CLIP_PREFIX):
        known = ", ".join([*SPECS, f"{OPEN_CLIP_PREFIX}ARCH/PRETRAINED"])
        raise BadInput(f"run {run.id} is a {name}, which is not the network of an embedder; these are: {known}")
    return name


def _number(lake: Lake, run: Run) -> str:
    return next((str(version.version) for version in versions.list(lake, run.model) if version.run == run.id), run.id)


def _preprocessing(model: models.NetworkModel) -> Preprocessing:
    """The preparation of training, with the classifier's own mean and std (training/tasks/classification.py)."""
    side = model.preparation.side
    mode: Literal["shortest", "squash"] = "squash" if model.preparation.geometry == "squash" else "shortest"
    return Preprocessing(side, side, "bilinear", _three(model, "mean"), _three(model, "std"), mode)


def _three(model: models.NetworkModel, buffer: str) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 6) for value in model.network.get_buffer(buffer).flatten())
    return red, green, blue
