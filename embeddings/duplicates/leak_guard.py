"""The leak guard: what a model is judged by must not be among what it was trained on, nor nearly.

A training slice is compared with the newest version of every evaluation and regression slice, by identity and by
likeness (`duplicates.py`); and the other way round. Images without vectors can be compared by identity only, and that
is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from embeddings.duplicates import duplicates
from embeddings.duplicates.duplicates import Pair
from lake import slices
from lake.errors import BadInput

if TYPE_CHECKING:
    from lake.slices import Draft, Slice
    from lake.storage.store import Lake

AGAINST = {"train": slices.KEPT_APART, "evaluation": ("train",), "regression": ("train",)}


@dataclass(frozen=True)
class Leaks:
    """Images of a set that slices of the other kind have, or nearly. `same` and `near`: image -> slices' ids.

    An image in `same` is not in `near`. `pairs`: the likenesses behind `near`. `uncompared`: images compared by
    identity only, since one side has no vector, or the lake no embedder.
    """

    against: list[str] = field(default_factory=list)
    same: dict[str, list[str]] = field(default_factory=dict)
    near: dict[str, list[str]] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    uncompared: int = 0

    @property
    def images(self) -> list[str]:
        return sorted({*self.same, *self.near})

    @property
    def slices(self) -> list[str]:
        return sorted({one for some in (self.same, self.near) for names in some.values() for one in names})

    def words(self) -> str:
        """One sentence; empty when there is nothing to say."""
        said = []
        if self.images:
            parts = [f"{len(self.same):,} are in"] if self.same else []
            parts += [f"{len(self.near):,} are near-duplicates of images in"] if self.near else []
            said.append(f"{' and '.join(parts)} {', '.join(self.slices)}")
        if self.uncompared and self.against:
            said.append(f"{self.uncompared:,} images could be compared by identity only: they have no vector")
        return "; ".join(said)

    def as_dict(self) -> dict[str, Any]:
        return {"same": self.same, "near": self.near, "slices": self.slices, "uncompared": self.uncompared}


def check(lake: Lake, names: Sequence[str], role: str | None, *, apart_from: str | None = None) -> Leaks:
    """What slices of the opposite role share with these images; nothing for a set without a role.

    `apart_from`: a slice's name that is left out. Costs a search among the images of those slices.
    """
    if role not in AGAINST:
        return Leaks()
    other = [one for one in slices.newest(lake, AGAINST[role]) if one.name != apart_from]
    held: dict[str, list[str]] = {}
    for one in other:
        for name in slices.members(lake, one).to_pylist():
            held.setdefault(name, []).append(one.id)
    same = {name: held[name] for name in names if name in held}
    found = Leaks([one.id for one in other], same)
    if not held:
        return found
    rest = [name for name in names if name not in same]
    embedder = _embedder(lake)
    if embedder is None:
        return replace(found, uncompared=len(rest))
    compared = duplicates.between(lake, rest, sorted(held), embedder=embedder)
    near: dict[str, list[str]] = {}
    for pair in compared.pairs:
        near[pair.image_id] = sorted({*near.get(pair.image_id, ()), *held[pair.other]})
    return replace(found, near=near, pairs=compared.pairs, uncompared=compared.without_vector)


def create(lake: Lake, name: str, *, drop_leaks: bool = False, **how: Any) -> tuple[Slice, Leaks]:
    """`lake.slices.create` with the leak guard; also what was found. See `guarded`."""
    made, found = guarded(lake, slices.draft(lake, name, **how), drop_leaks)
    return slices.save(lake, made), found


def guarded(lake: Lake, made: Draft, drop_leaks: bool = False) -> tuple[Draft, Leaks]:
    """The draft as it may be saved, and what was found. A training slice loses its leaks with `drop_leaks`.

    Raises BadInput for a training slice with leaks without it. Evaluation and regression slices are never refused:
    what was found names the training slices that are spoilt.
    """
    found = check(lake, made.members, made.role, apart_from=made.name)
    if made.role != "train":
        return made, found
    drop = drop_leaks or made.drop_leaks
    if found.images and not drop:
        raise BadInput(
            f"training must not see what it is judged by: of {len(made.members):,} images {found.words()}; leave them "
            "out with --drop-leaks"
        )
    return replace(made.without(found.images), drop_leaks=drop) if drop else made, found


def assign(lake: Lake, made: Slice, role: str | None) -> tuple[Slice, Leaks]:
    """Gives a slice's version another role, guarded as `create`; None takes it away. Raises BadInput."""
    found = check(lake, slices.members(lake, made).to_pylist(), role, apart_from=made.name)
    if role == "train" and found.images:
        raise BadInput(f"{made.id} cannot be for training: of its images {found.words()}")
    return slices.set_role(lake, made, role), found


def _embedder(lake: Lake) -> str | None:
    """The first embedder that has vectors."""
    return next((record.name for record in lake.embedders() if record.dim is not None), None)
