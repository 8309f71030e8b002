"""A retrained classifier's features as an embedder of the lake: what it learnt to tell apart, search and clusters see.

The backbone's weights are kept with the lake under their fingerprint, as those of any embedder, and images are prepared
as they were in training: vectors of it can be made again anywhere the lake is, without the run.
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


def register(lake: Lake, name: str, called: str | None = None) -> EmbedderRecord:
    """Makes the features of a model (NAME, NAME@V or a run) an embedder of the lake, before its first vector is made.

    It is `called` ARCHITECTURE@MODEL-VERSION, or with the run's id where that is no version, unless told otherwise.
    Doing it again changes nothing. Raises BadInput for a model that has no such features, WeightsMismatch when the lake
    has other vectors under the name.
    """
    from safetensors.torch import save_file

    run = models.find(lake, name)
    architecture = _architecture(run)
    called = called or f"{architecture}@{run.model}-{_number(lake, run)}"
    if called.partition("@")[0] != architecture or "@" not in called:
        raise BadInput(f"run {run.id} is a {architecture}: call its embedder {architecture}@NAME, not {called}")
    made_of = f"run {run.id} of model {run.model}"
    there = next((one for one in lake.embedders() if one.name == called), None)
    if there is not None and there.weights == made_of:
        return there
    model = models.load(lake, run.id)
    assert isinstance(model, models.NetworkModel)
    tensors = model.network.get_submodule("backbone").state_dict()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "backbone.safetensors")
        save_file({k: v.contiguous() for k, v in tensors.items()}, file)
        made = embedders.NetworkEmbedder(called, file, engine="torch", preprocessing=_preprocessing(model))
    if there is not None and there.weights_sha256 is not None:
        if there.weights_sha256 != made.weights_sha256:
            raise WeightsMismatch(
                f"the lake's embedder {called} has weights {there.weights_sha256[:12]}, run {run.id} has "
                f"{made.weights_sha256[:12]}: give this one another name with --embedder {architecture}@NAME"
            )
        return there
    weights.store(lake, made.module, made.weights_sha256)
    lake.register_embedder(called)
    assert made.spec.preprocessing is not None
    record = store.EmbedderRecord(
        called,
        embedders.new_record(called).column,
        made.spec.dim,
        made.weights_sha256,
        made_of,
        made.spec.preprocessing.json(),
        f"retrained from {made.spec.licence}" if run.recipe.pretrained else None,
        False,
    )
    lake.bind_embedder(record)
    return record


def _architecture(run: Run) -> str:
    if run.kind != "finetune" or run.task != "classification":
        kind = "probe" if run.kind == "probe" else f"{run.task} network"
        raise BadInput(f"run {run.id} is a {kind}; a fine-tuned classifier's features can be an embedder")
    name = run.recipe.architecture
    if name not in SPECS and not name.startswith(OPEN_CLIP_PREFIX):
        known = ", ".join([*SPECS, f"{OPEN_CLIP_PREFIX}ARCH/PRETRAINED"])
        raise BadInput(f"run {run.id} is a {name}, which is no embedder's network; those are {known}")
    return name


def _number(lake: Lake, run: Run) -> str:
    return next((str(one.version) for one in versions.list(lake, run.model) if one.run == run.id), run.id)


def _preprocessing(model: models.NetworkModel) -> Preprocessing:
    """The square of training, normalised by the classifier's own buffers (training/tasks/classification.py)."""
    side = model.preparation.side
    mode: Literal["shortest", "squash"] = "squash" if model.preparation.geometry == "squash" else "shortest"
    return Preprocessing(side, side, "bilinear", _three(model, "mean"), _three(model, "std"), mode)


def _three(model: models.NetworkModel, buffer: str) -> tuple[float, float, float]:
    red, green, blue = (round(float(one), 6) for one in model.network.get_buffer(buffer).flatten())
    return red, green, blue
