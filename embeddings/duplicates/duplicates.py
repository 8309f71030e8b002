"""Near-duplicates: images of the very same view, re-encoded, resized, lightly cropped, brightened or shifted.

Two steps. Vectors propose: the nearest neighbours of each image, from a cosine that depends on the embedder. Thumbnails
decide: a pair counts when both agree once they are laid over each other (`alignment.py`), since vectors of the same
kind of thing may be as near as those of a copy. A pair of which a thumbnail is missing counts from a higher cosine on.
Groups are made round a centre that every member was compared with, or whose own centre was: resemblance does not run on
from neighbour to neighbour through a whole film.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embeddings.duplicates import alignment, altered_copies
from embeddings.embedders import embedder as embedders
from embeddings.embedders import specs
from embeddings.embedders.preprocess import prepare
from embeddings.vectors.neighbours import nearest, neighbours
from lake.errors import BadInput, UnreadableImage
from lake.sql import connections
from lake.storage import blobs
from lake.storage.vectors import image_vectors

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.storage.store import EmbedderRecord, Lake

# Of 9,000 pairs of copies of 600 photographs 0.997 agree by more, of other pairs none by more than 0.48:
# `python -m benchmarks duplicates`.
ALIGNED = 0.6
# Cosine from which a pair counts unseen: no two different ones of 600 photographs have more than 0.74.
SURE = 0.9
# Neighbours proposed for each image. A larger group is put together from the stars of its members.
NEIGHBOURS = 20
# Fewer vectors are compared with each other exactly; of more a few neighbours may be missed.
EXACT_UP_TO = 30_000
# Directions in which neighbours are looked for; the cosine that counts is that of the whole vectors.
DIRECTIONS, FITTED_ON = 128, 5_000
# Of the copies of an image of the lake, how many the calibrated cosine is to find; and between what it may be.
CALIBRATED_RECALL, LOWEST, HIGHEST = 0.99, 0.5, 0.95


@dataclass(frozen=True)
class Pair:
    """Two images; cosine of their vectors, and how well their thumbnails agree (None: one has none)."""

    image_id: str
    other: str
    cosine: float
    agreement: float | None


@dataclass(frozen=True)
class Duplicates:
    """Groups of near-duplicates: image_ids, the centre first; the largest group first. No image is in two.

    `looked`: images compared; `without_vector`: images left out; `unseen`: pairs taken by their cosine alone.
    """

    groups: list[list[str]]
    pairs: list[Pair]
    looked: int
    without_vector: int
    unseen: int
    embedder: str
    threshold: float

    @property
    def spare(self) -> int:
        """How many images could go if each group kept one."""
        return sum(len(group) - 1 for group in self.groups)


@dataclass(frozen=True)
class Calibration:
    """A cosine found by planting copies: `recall` of them it proposes. `kin`: of the nearest other images of the
    sample, the share that pass as near-duplicates. When that is high, there are many, or all images look alike.
    """

    embedder: str
    threshold: float
    recall: float
    copies: int
    kin: float


def threshold_of(lake: Lake, record: EmbedderRecord, given: float | None = None) -> float:
    """The cosine from which a pair is looked at: `given`, else the lake's calibrated one, else the embedder's own.

    Raises BadInput unless `given` is from -1 to 1.
    """
    if given is not None:
        if not -1 <= given <= 1:
            raise BadInput(f"threshold is {given}; it is a cosine, from -1 to 1")
        return given
    rows = lake.scan("embedders", ["name", "duplicates_from"]).to_pylist()
    kept = next((row["duplicates_from"] for row in rows if row["name"] == record.name), None)
    return specs.duplicates_from(record.name) if kept is None else float(kept)


def find(
    lake: Lake,
    names: Sequence[str] | None = None,
    *,
    embedder: str | None = None,
    threshold: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Duplicates:
    """The near-duplicates among some images, or all of the lake. `progress` counts images whose neighbours are known.

    Raises BadInput without an embedder or vectors, and for a threshold that is no cosine.
    """
    record = embedders.record_of(lake, embedder)
    least = threshold_of(lake, record, threshold)
    known, vectors = image_vectors(lake, record, names)
    total = len(set(names)) if names is not None else _count(lake)
    left, right, cosine = proposed(vectors, least, progress)
    agreed, seen = _agreement(lake, known, known, left, right)
    kept = np.where(seen, agreed >= ALIGNED, cosine >= max(SURE, least))
    left, right, cosine, agreed, seen = (one[kept] for one in (left, right, cosine, agreed, seen))
    centres = _Verified(lake, known, vectors, least)
    groups = [[known[place] for place in group] for group in grouped(len(known), left, right, centres)]
    pairs = _pairs(known, known, left, right, cosine, agreed, seen)
    return Duplicates(groups, pairs, len(known), total - len(known), int((~seen).sum()), record.name, least)


@dataclass(frozen=True)
class Between:
    """Near-duplicates of some images among others. `pairs`: (one of the first, one of the others), the same image in
    both excepted. `without_vector`: images of either that could not be compared.
    """

    pairs: list[Pair]
    without_vector: int
    embedder: str
    threshold: float


def between(
    lake: Lake,
    names: Sequence[str],
    others: Sequence[str],
    *,
    embedder: str | None = None,
    threshold: float | None = None,
) -> Between:
    """Which of `names` are near-duplicates of which of `others`. Raises as `find` does."""
    record = embedders.record_of(lake, embedder)
    least = threshold_of(lake, record, threshold)
    known, vectors = image_vectors(lake, record, sorted({*names, *others}))
    place = {name: at for at, name in enumerate(known)}
    queries = np.array([place[one] for one in dict.fromkeys(names) if one in place], np.int64)
    targets = np.array([place[one] for one in dict.fromkeys(others) if one in place], np.int64)
    without = len({*names, *others}) - len(known)
    if not len(queries) or not len(targets):
        return Between([], without, record.name, least)
    narrow = _narrowed(vectors)
    k = min(NEIGHBOURS, len(targets))
    index, _ = nearest(narrow[queries], narrow[targets], k, metric="cosine", exact=len(targets) <= EXACT_UP_TO)
    left, right = np.repeat(queries, k), targets[index.ravel()]
    cosine = np.einsum("ij,ij->i", vectors[left], vectors[right])
    kept = (left != right) & (cosine >= least)
    left, right, cosine = left[kept], right[kept], cosine[kept]
    agreed, seen = _agreement(lake, known, known, left, right)
    kept = np.where(seen, agreed >= ALIGNED, cosine >= max(SURE, least))
    rest = (one[kept] for one in (left, right, cosine, agreed, seen))
    return Between(_pairs(known, known, *rest), without, record.name, least)


def proposed(
    vectors: np.ndarray, least: float, progress: Callable[[int], None] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (left < right) of neighbours whose cosine is at least `least`, each once, and that cosine."""
    n = len(vectors)
    if n < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    k = min(NEIGHBOURS, n - 1)
    index, _ = neighbours(_narrowed(vectors), k, metric="cosine", exact=n <= EXACT_UP_TO, progress=progress)
    one, other = np.repeat(np.arange(n), k), index.ravel()
    keys = np.unique(np.minimum(one, other) * n + np.maximum(one, other))
    left, right = keys // n, keys % n
    cosine = np.concatenate(
        [
            np.einsum("ij,ij->i", vectors[left[at : at + 8192]], vectors[right[at : at + 8192]])
            for at in range(0, len(left), 8192)
        ]
    )
    kept = cosine >= least
    return left[kept], right[kept], cosine[kept]


def grouped(
    n: int,
    left: np.ndarray,
    right: np.ndarray,
    same: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> list[list[int]]:
    """Groups of two or more of n things of which these pairs are the same, each thing in one group at most.

    A star is a thing and all that are the same as it, largest first, ties by number. Stars that touch become one when
    `same` says so of their centres: pairs (left, right) -> booleans. A star joins one that joined no other.
    """
    near = defaultdict[int, set[int]](set)
    for one, other in zip(left.tolist(), right.tolist(), strict=True):
        near[one].add(other)
        near[other].add(one)
    centre = dict[int, int]()
    order = sorted(near, key=lambda thing: (-len(near[thing]), thing))
    for thing in order:
        if thing not in centre:
            for member in (thing, *near[thing]):
                centre.setdefault(member, thing)
    if same is not None:
        touching = {
            (min(a, b), max(a, b))
            for one, other in zip(left.tolist(), right.tolist(), strict=True)
            if (a := centre[one]) != (b := centre[other])
        }
        rank = {thing: at for at, thing in enumerate(order)}
        ordered = sorted(
            (sorted(pair, key=rank.__getitem__) for pair in touching), key=lambda p: [rank[p[0]], rank[p[1]]]
        )
        if ordered:
            both = np.array(ordered)
            into = dict[int, int]()
            for (larger, smaller), alike in zip(ordered, same(both[:, 0], both[:, 1]), strict=True):
                if alike and larger not in into and smaller not in into and smaller not in into.values():
                    into[smaller] = larger
            centre = {thing: into.get(at, at) for thing, at in centre.items()}
    groups = defaultdict[int, list[int]](list)
    for thing in sorted(centre):
        groups[centre[thing]].append(thing)
    found = [[at, *(thing for thing in some if thing != at)] for at, some in groups.items() if len(some) > 1]
    return sorted(found, key=lambda group: (-len(group), group))


def calibrate(
    lake: Lake, *, embedder: str | None = None, model: Embedder | None = None, images: int = 100, seed: int = 0
) -> Calibration:
    """Finds the cosine that proposes CALIBRATED_RECALL of copies of the lake's own images, and keeps it in the lake.

    Five copies each of a sample are made and embedded: about a minute on two cores. Raises BadInput when there are too
    few images with bytes and a vector.
    """
    record = embedders.record_of(lake, embedder)
    known, vectors = image_vectors(lake, record)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(known))[: 2 * images]
    held = {image.image_id: image.data for image in blobs.images(lake, [known[at] for at in order.tolist()])}
    sample = [at for at in order.tolist() if known[at] in held][:images]
    if len(sample) < 10:
        raise BadInput(f"{len(sample)} images have bytes and a {record.name} vector; calibration needs 10 or more")
    model = model or embedders.for_lake(lake, record, images=5 * len(sample))
    files: list[tuple[int, bytes]] = []
    for at in sample:
        try:
            files += [(at, data) for data in altered_copies.copies(held[known[at]], at).values()]
        except UnreadableImage:
            continue
    cosines: list[float] = []
    for start in range(0, len(files), 64):
        part = files[start : start + 64]
        result = model.embed_batch([prepare(data, model.spec.preprocessing) for _, data in part])
        places = np.array([at for at, _ in part])[result.kept]
        cosines += np.einsum("ij,ij->i", result.vectors, vectors[places]).tolist()
    if not cosines:
        raise BadInput("none of the sampled images can be decoded, so no copies could be made")
    found = np.clip(np.floor(np.quantile(cosines, 1 - CALIBRATED_RECALL) * 100) / 100, LOWEST, HIGHEST)
    recall = float(np.mean(np.asarray(cosines) >= found))
    index, distance = nearest(vectors[sample], vectors, min(2, len(vectors)), metric="cosine")
    own = np.repeat(np.array(sample), index.shape[1])
    far = (own != index.ravel()) & (1 - distance.ravel() >= found)
    agreed, seen = _agreement(lake, known, known, own[far], index.ravel()[far])
    row = lake.dataset("embedders").to_table(filter=f"name = '{record.name}'").to_pylist()[0]
    _keep(lake, row | {"duplicates_from": float(found)})
    kin = float(((agreed >= ALIGNED) & seen).sum() / len(sample))
    return Calibration(record.name, float(found), recall, len(cosines), kin)


def keep(lake: Lake, threshold: float, *, embedder: str | None = None) -> None:
    """Makes this cosine the lake's own, for lakes where a calibrated one cannot help: where different images look as
    alike as copies (photographs of one product, taken by a machine), all that a search for copies says is wrong, and
    0.999 leaves the identical ones. Raises BadInput as `threshold_of` does.
    """
    record = embedders.record_of(lake, embedder)
    row = lake.dataset("embedders").to_table(filter=f"name = '{record.name}'").to_pylist()[0]
    _keep(lake, row | {"duplicates_from": threshold_of(lake, record, threshold)})


class _Verified:
    """Whether pairs are near-duplicates, by vectors and thumbnails: for centres, that were not compared so far."""

    def __init__(self, lake: Lake, names: Sequence[str], vectors: np.ndarray, least: float) -> None:
        self._lake, self._names, self._vectors, self._least = lake, names, vectors, least

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        cosine = np.einsum("ij,ij->i", self._vectors[left], self._vectors[right])
        agreed, seen = _agreement(self._lake, self._names, self._names, left, right)
        both: np.ndarray = np.where(seen, agreed >= ALIGNED, cosine >= max(SURE, self._least)) & (cosine >= self._least)
        return both


def _agreement(
    lake: Lake, names: Sequence[str], others: Sequence[str], left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How well the thumbnails of each pair agree, and whether both are there."""
    if not len(left):
        return np.empty(0, np.float32), np.empty(0, bool)
    wanted = sorted({names[at] for at in left.tolist()} | {others[at] for at in right.tolist()})
    place: dict[str, int] = {}
    prints: list[np.ndarray] = []
    for start in range(0, len(wanted), 2_000):
        rows = lake.look_up("thumbnails", ["image_id", "jpeg"], "image_id", wanted[start : start + 2_000])
        for name in rows["image_id"].to_pylist():
            place[name] = len(place)
        prints.append(alignment.fingerprints(rows["jpeg"].to_pylist()))
    a = np.array([place.get(names[at], -1) for at in left.tolist()])
    b = np.array([place.get(others[at], -1) for at in right.tolist()])
    seen = (a >= 0) & (b >= 0)
    agreed = np.zeros(len(left), np.float32)
    agreed[seen] = alignment.agreement(np.concatenate(prints), a[seen], b[seen])
    return agreed, seen


def _narrowed(vectors: np.ndarray) -> np.ndarray:
    """The vectors in the DIRECTIONS they differ in most, lengths and angles kept as far as those hold them."""
    if vectors.shape[1] <= DIRECTIONS or len(vectors) <= DIRECTIONS:
        return vectors
    step = max(1, len(vectors) // FITTED_ON)
    some = vectors[::step].astype(np.float64)
    _, axes = np.linalg.eigh(some.T @ some)
    found: np.ndarray = vectors @ axes[:, -DIRECTIONS:].astype(np.float32)
    return found


def _pairs(
    names: Sequence[str],
    others: Sequence[str],
    left: np.ndarray,
    right: np.ndarray,
    cosine: np.ndarray,
    agreed: np.ndarray,
    seen: np.ndarray,
) -> list[Pair]:
    rows = zip(left.tolist(), right.tolist(), cosine.tolist(), agreed.tolist(), seen.tolist(), strict=True)
    return [Pair(names[a], others[b], c, g if there else None) for a, b, c, g, there in rows]


def _count(lake: Lake) -> int:
    return int(connections.query(lake, "SELECT count(DISTINCT image_id) AS n FROM predictions")["n"][0].as_py())


def _keep(lake: Lake, row: dict[str, object]) -> None:
    import pyarrow as pa

    from lake.storage import schema

    lake.update("embedders", pa.Table.from_pylist([row], schema=schema.EMBEDDERS.arrow()))
