"""The leak guard: training slices share no image or near-duplicate with evaluation slices.

It is the only way to make a training slice. The slice is compared with the newest version of every evaluation and
regression slice, by identity and by near-duplicates (`duplicates.py`); an evaluation or regression slice is compared
with the training slices, and only reported. Near-duplicates need vectors: a training slice of images without them is
refused, unless you allow that those images are compared by identity only, which the slice records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embeddings.duplicates import duplicates
from embeddings.duplicates.duplicates import DuplicatePair
from lake import slices
from lake.errors import BadInput

if TYPE_CHECKING:
    from lake.slices import Slice, SliceDraft
    from lake.storage.store import Lake

AGAINST = {"train": ("evaluation", "regression"), "evaluation": ("train",), "regression": ("train",)}


@dataclass(frozen=True)
class Leaks:
    """Images of a set that slices of the opposite role have, too, or a near-duplicate of them.

    `same` and `near`: image -> ids of slices; an image in `same` is not in `near`. `pairs`: the pairs behind `near`.
    `uncompared`: images compared by identity only: they, or those of the other slices, have no vector.
    """

    against: list[str] = field(default_factory=list)
    same: dict[str, list[str]] = field(default_factory=dict)
    near: dict[str, list[str]] = field(default_factory=dict)
    pairs: list[DuplicatePair] = field(default_factory=list)
    uncompared: int = 0

    @property
    def images(self) -> list[str]:
        return sorted({*self.same, *self.near})

    @property
    def slices(self) -> list[str]:
        return sorted({name for leaks in (self.same, self.near) for names in leaks.values() for name in names})

    def words(self) -> str:
        """One sentence; empty when there is nothing to report."""
        sentences = []
        if self.images:
            parts = [f"{len(self.same):,} are in"] if self.same else []
            parts += [f"{len(self.near):,} are near-duplicates of images in"] if self.near else []
            sentences.append(f"{' and '.join(parts)} {', '.join(self.slices)}")
        if self.uncompared and self.against:
            sentences.append(f"{_images(self.uncompared)} were compared by identity only, without vectors")
        return "; ".join(sentences)

    def as_dict(self) -> dict[str, Any]:
        return {"same": self.same, "near": self.near, "slices": self.slices, "uncompared": self.uncompared}


def check(lake: Lake, names: Sequence[str], role: str | None, *, apart_from: str | None = None) -> Leaks:
    """What slices of the opposite role share with these images; nothing for a set without a role.

    `apart_from`: a slice's name that is left out. Costs a search among the images of those slices.
    """
    if role not in AGAINST:
        return Leaks()
    others = [slice_ for slice_ in slices.newest(lake, AGAINST[role]) if slice_.name != apart_from]
    slices_of: dict[str, list[str]] = {}
    for slice_ in others:
        for name in slices.members(lake, slice_).to_pylist():
            slices_of.setdefault(name, []).append(slice_.id)
    same = {name: slices_of[name] for name in names if name in slices_of}
    leaks = Leaks([slice_.id for slice_ in others], same)
    if not slices_of:
        return leaks
    rest = [name for name in names if name not in same]
    embedder = _embedder(lake)
    if embedder is None:
        return replace(leaks, uncompared=len(rest))
    compared = duplicates.between(lake, rest, sorted(slices_of), embedder=embedder)
    near: dict[str, list[str]] = {}
    for pair in compared.pairs:
        near[pair.image_id] = sorted({*near.get(pair.image_id, ()), *slices_of[pair.other]})
    return replace(leaks, near=near, pairs=compared.pairs, uncompared=compared.without_vector)


def create(
    lake: Lake, name: str, *, drop_leaks: bool = False, identity_only: bool = False, **definition: Any
) -> tuple[Slice, Leaks]:
    """`lake.slices.create` with the leak guard, for a slice of any role; also the leaks. See `guarded`."""
    draft, leaks = guarded(lake, slices.draft(lake, name, **definition), drop_leaks, identity_only)
    return slices.save(lake, draft), leaks


def guarded(
    lake: Lake, draft: SliceDraft, drop_leaks: bool = False, identity_only: bool = False
) -> tuple[SliceDraft, Leaks]:
    """The draft as it may be saved, and its leaks. A training slice loses its leaks with `drop_leaks`.

    Raises BadInput for a training slice with leaks unless `drop_leaks`, and for one that has to be compared by vectors
    that images lack unless `identity_only`. Evaluation and regression slices are never refused: the leaks name the
    training slices that share their images.
    """
    leaks = check(lake, draft.members, draft.role, apart_from=draft.name)
    if draft.role != "train":
        return replace(draft, drop_leaks=False, identity_only=False), leaks
    drop = drop_leaks or draft.drop_leaks
    if leaks.images and not drop:
        raise BadInput(
            f"a training slice must not share images with evaluation slices: of {len(draft.members):,} images "
            f"{leaks.words()}; leave them out with --drop-leaks"
        )
    by_identity = _by_identity(lake, leaks, identity_only or draft.identity_only)
    draft = replace(draft, drop_leaks=drop, identity_only=by_identity, guarded=True)
    return draft.without(leaks.images) if drop else draft, leaks


def assign(lake: Lake, slice_: Slice, role: str | None, *, identity_only: bool = False) -> tuple[Slice, Leaks]:
    """Gives a slice's version another role, guarded as `create`; None takes the role away. Raises BadInput."""
    leaks = check(lake, slices.members(lake, slice_).to_pylist(), role, apart_from=slice_.name)
    if role != "train":
        return slices.set_role(lake, slice_, role), leaks
    if leaks.images:
        raise BadInput(f"{slice_.id} cannot be for training: of its images {leaks.words()}")
    by_identity = _by_identity(lake, leaks, identity_only)
    return slices.set_role(lake, slice_, role, guarded=True, identity_only=by_identity), leaks


def _by_identity(lake: Lake, leaks: Leaks, allowed: bool) -> bool:
    """Whether images of a training slice were compared by identity only. Raises BadInput unless that is allowed."""
    if not leaks.uncompared or not leaks.against:
        return False
    if not allowed:
        embedder = _embedder(lake) or next((record.name for record in lake.embedders()), "efficientnet-lite0")
        raise BadInput(
            f"{_images(leaks.uncompared)} {'has' if leaks.uncompared == 1 else 'have'} no vector, so near-duplicates of"
            f" images in {', '.join(leaks.against)} cannot be found; run: lakeloop embed --embedder {embedder}, or"
            " compare such images by identity only with --identity-only"
        )
    return True


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _embedder(lake: Lake) -> str | None:
    """The first embedder that has vectors."""
    return next((record.name for record in lake.embedders() if record.dim is not None), None)
