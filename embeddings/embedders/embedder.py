"""The embedder protocol: a batch of images becomes vectors; and the lake's embedders by name.

A user's own embedder is a class with `spec`, `weights_sha256` and `embed_batch`, registered as an entry point in the
group `lakeloop.embedders` (docs/add-an-embedder.md). It is constructed once, without arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from embeddings.embedders import engine as engines
from embeddings.embedders import specs, weights
from embeddings.embedders.specs import Preprocessing, Spec
from lake.errors import BadInput, WeightsMismatch
from lake.storage import schema, store

if TYPE_CHECKING:
    from lake.storage.store import EmbedderRecord, Lake


@dataclass(frozen=True)
class Embedded:
    """`vectors`: float32 (m, dim), each of length 1; `vectors[i]` is of the image with index `kept[i]` in the batch.

    m is smaller than the batch if some images could not be embedded.
    """

    vectors: np.ndarray
    kept: np.ndarray


class Embedder(Protocol):
    """`weights_sha256` identifies the weights: vectors of two different values never share a column."""

    spec: Spec
    weights_sha256: str

    def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
        """Embeds uint8 (height, width, 3) RGB images, prepared by `spec.preprocessing`, or whole if that is None."""
        ...


@runtime_checkable
class TextEmbedder(Protocol):
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, dim), unit length, in the same space as the images."""
        ...


class NetworkEmbedder:
    """An embedder with a built-in network."""

    def __init__(
        self,
        name: str,
        file: Path | None = None,
        trust_sha256: str | None = None,
        engine: engines.EngineName = "auto",
        images: int = 0,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        from embeddings.embedders.networks import build

        network = build(specs.base_name(name), file, trust_sha256)
        self.spec = replace(network.spec, preprocessing=preprocessing or network.spec.preprocessing)
        self.weights_sha256 = weights.fingerprint(network.module)
        self.module = network.module
        self._texts = network.texts
        assert self.spec.preprocessing is not None
        self.engine = engines.make(network.features, self.spec.preprocessing, engine, images)

    def embed_batch(self, images: Sequence[np.ndarray]) -> Embedded:
        if not len(images):
            return Embedded(np.empty((0, self.spec.dim), np.float32), np.empty(0, np.int64))
        stacked = images if isinstance(images, np.ndarray) else np.stack(images)
        size = self.engine.batch
        vectors = np.concatenate([self.engine(stacked[i : i + size]) for i in range(0, len(stacked), size)])
        kept = np.flatnonzero(np.isfinite(vectors).all(axis=1))
        return Embedded(vectors[kept], kept)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        if self._texts is None:
            raise BadInput(f"{self.spec.name} embeds images only; text needs a CLIP embedder, e.g. clip-vit-b-32")
        from embeddings.embedders.torch_import import torch

        with torch().inference_mode():
            return engines.unit(self._texts(list(texts)).float().cpu().numpy())


def load(
    name: str,
    *,
    file: Path | None = None,
    trust_sha256: str | None = None,
    engine: engines.EngineName = "auto",
    images: int = 0,
    preprocessing: Preprocessing | None = None,
) -> Embedder:
    """Loads the embedder of this name, with the weights of `file` or its published ones.

    `images`: about how many it will embed; the engine `auto` depends on it. `preprocessing`: of a built-in network's
    images, if it differs from that of its published weights. Raises BadInput for an unknown name or a file that does
    not fit, HubUnreachable if published weights cannot be downloaded.
    """
    specs.check_name(name)
    base = specs.base_name(name)
    entry_point = specs.own_embedders().get(base)
    if entry_point is not None and base not in specs.SPECS:
        if file is not None:
            raise BadInput(f"embedder {name} is {entry_point.value}, which takes no --weights")
        embedder: Embedder = entry_point.load()()
        return embedder
    return NetworkEmbedder(name, file, trust_sha256, engine, images, preprocessing)


def record_of(lake: Lake, name: str | None) -> EmbedderRecord:
    """The lake's record of the named embedder, or of its first. Raises BadInput if the lake does not have it."""
    records = lake.embedders()
    if name is None:
        if not records:
            raise BadInput("the lake has no embedder; run: lakeloop embed --embedder efficientnet-lite0")
        return records[0]
    record = next((record for record in records if record.name == name), None)
    if record is None:
        names = ", ".join(record.name for record in records) or "none"
        raise BadInput(f"the lake has no embedder {name!r} (it has {names}); run: lakeloop embed --embedder {name}")
    return record


def new_record(name: str) -> EmbedderRecord:
    """A record for an embedder new to the lake; its first run writes it. Raises BadInput for an unknown name."""
    specs.check_name(name)
    return store.EmbedderRecord(name, schema.vector_column(name), None, None, None, None, None, False)


def known_or_new(lake: Lake, name: str | None) -> EmbedderRecord:
    """The lake's record of the named embedder or of its first; for a name new to the lake, a record that is not stored.

    Raises BadInput for an unknown name, and for None if the lake has no embedder.
    """
    known = name is None or any(record.name == name for record in lake.embedders())
    return record_of(lake, name) if known or name is None else new_record(name)


def for_lake(
    lake: Lake,
    record: EmbedderRecord,
    *,
    file: Path | None = None,
    trust_sha256: str | None = None,
    engine: engines.EngineName = "auto",
    images: int = 0,
) -> Embedder:
    """The embedder that made the lake's vectors of `record`, with the same weights and preprocessing.

    The lake stores weights that came from a `file`, so you need to pass the file only once. Raises WeightsMismatch if
    the weights differ from the lake's.
    """
    embedder = load(
        record.name,
        file=file or weights.stored(lake, record.weights_sha256),
        trust_sha256=trust_sha256,
        engine=engine,
        images=images,
        preprocessing=Preprocessing.of(record.preprocessing) if record.preprocessing else None,
    )
    if record.weights_sha256 not in (None, embedder.weights_sha256):
        raise WeightsMismatch(
            f"the lake's {record.name} vectors were made with weights {record.weights_sha256[:12]}, these are "
            f"{embedder.weights_sha256[:12]}: vectors of different weights cannot be compared. Give the second set a "
            f"name of its own: --embedder {specs.base_name(record.name)}@NAME"
        )
    return embedder


def bind(lake: Lake, record: EmbedderRecord, embedder: Embedder, file: Path | None = None) -> EmbedderRecord:
    """Records the facts of an embedder at its first run, and stores weights that came from a file."""
    if record.weights_sha256 is not None:
        return record
    lake.register_embedder(record.name)
    spec = embedder.spec
    module: Any = getattr(embedder, "module", None)
    if file is not None and module is not None:
        weights.store(lake, module, embedder.weights_sha256)
    bound = replace(
        record,
        dim=spec.dim,
        weights_sha256=embedder.weights_sha256,
        weights=file.name if file is not None else spec.weights,
        preprocessing=spec.preprocessing.json() if spec.preprocessing else None,
        licence=spec.licence if file is None else "not known: weights from a file",
        embeds_text=spec.embeds_text,
    )
    lake.bind_embedder(bound)
    return bound
