"""Groups of near-duplicates from pairs: stars round a centre, not chains from neighbour to neighbour."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

Same = Callable[[np.ndarray, np.ndarray], np.ndarray]


def grouped(n: int, left: np.ndarray, right: np.ndarray, same: Same | None = None) -> list[list[int]]:
    """Groups of two or more of n items, the centre first, the largest group first; no item is in two groups.

    `left` and `right` (pairs,) are the items that are the same. A star is an item and all that are the same as it; the
    largest stars come first, ties by number. Stars that touch are joined if `same` says that their centres are the
    same: pairs (left, right) -> bool. A star joins only a star that joined no other.
    """
    neighbours = defaultdict[int, set[int]](set)
    for item, other in zip(left.tolist(), right.tolist(), strict=True):
        neighbours[item].add(other)
        neighbours[other].add(item)
    centre_of = dict[int, int]()
    order = sorted(neighbours, key=lambda item: (-len(neighbours[item]), item))
    for item in order:
        if item not in centre_of:
            for member in (item, *neighbours[item]):
                centre_of.setdefault(member, item)
    if same is not None:
        centre_of = _joined(centre_of, order, left, right, same)
    members = defaultdict[int, list[int]](list)
    for item in sorted(centre_of):
        members[centre_of[item]].append(item)
    groups = [[centre, *(item for item in star if item != centre)] for centre, star in members.items() if len(star) > 1]
    return sorted(groups, key=lambda group: (-len(group), group))


def _joined(
    centre_of: dict[int, int], order: list[int], left: np.ndarray, right: np.ndarray, same: Same
) -> dict[int, int]:
    """The centres after joining touching stars whose centres are the same; the larger star's centre stays."""
    touching = {
        (min(a, b), max(a, b))
        for item, other in zip(left.tolist(), right.tolist(), strict=True)
        if (a := centre_of[item]) != (b := centre_of[other])
    }
    if not touching:
        return centre_of
    rank = {item: position for position, item in enumerate(order)}
    pairs = [sorted(pair, key=rank.__getitem__) for pair in touching]
    pairs.sort(key=lambda pair: [rank[pair[0]], rank[pair[1]]])
    centres = np.array(pairs)
    into = dict[int, int]()
    for (larger, smaller), alike in zip(pairs, same(centres[:, 0], centres[:, 1]), strict=True):
        if alike and larger not in into and smaller not in into and smaller not in into.values():
            into[smaller] = larger
    return {item: into.get(centre, centre) for item, centre in centre_of.items()}
