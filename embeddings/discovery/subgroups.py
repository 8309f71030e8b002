"""Finds subgroups of predictions that fail more often than chance explains.

As in SliceLine (Sagadeeva and Boehm, SIGMOD 2021), combinations of one, two and three conditions are enumerated level
by level and pruned below a minimal support. `scan_statistic.py` scores each subgroup. The significance is measured:
the errors are permuted many times among all predictions, and each time the highest score of any subgroup is recorded
(Westfall and Young 1993). A subgroup is reported only if at most 1 % of these maxima reach its score. So in 99 % of
lakes without a failure nothing is reported, however many subgroups were compared.

`error_direction.py` adds subgroups that no column names. They are fitted again for each permutation, so the same maxima
cover them. This module knows numbers only: no lake, no images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from embeddings.discovery.error_direction import ErrorDirection
from embeddings.discovery.scan_statistic import Subgroup
from embeddings.discovery.subgroup_table import SubgroupTable

MAX_CONDITIONS = 3
PERMUTATIONS = 400
MIN_PERMUTATIONS = 99
# At 0.05, one lake in twenty without a failure would report one: too many for a report that nobody requested.
LEVEL = 0.01


@dataclass(frozen=True)
class Failure:
    """A subgroup that fails significantly more often.

    `members`: bool (n,). `p`: how often chance alone gives any subgroup such a score, 0 to 1, corrected for all
    subgroups. `same`: other subgroups of nearly the same predictions, the most similar first, with the Jaccard index.
    """

    group: Subgroup
    members: np.ndarray
    p: float
    same: list[tuple[Subgroup, float]] = field(default_factory=list)


@dataclass(frozen=True)
class SubgroupResult:
    """`failures`: the highest score first; `compared`: how many subgroups; `max_conditions`: combined at most."""

    failures: list[Failure]
    compared: int
    max_conditions: int


def search(
    codes: np.ndarray,
    errors: np.ndarray,
    points: np.ndarray | None = None,
    *,
    clusters: Sequence[int] = (),
    unnamed: Sequence[int] = (),
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    max_conditions: int = MAX_CONDITIONS,
    progress: Callable[[float], None] | None = None,
) -> SubgroupResult:
    """Subgroups that fail more often than chance explains; no failure is explained by an earlier one.

    `codes`: int (n, dimensions), the value of each prediction in each dimension from 0 on, or -1 for none. `errors`:
    (n,), 0 to 1 each. `points`: float (n, d), reduced vectors of the predictions, to find subgroups without a name; a
    row of NaN for a prediction without a vector. `clusters`: dimensions that are clusters; they are not combined with
    others. `unnamed`: the same, for clusters without a name. `progress` receives the share that is done, 0 to 1.
    Raises ValueError for fewer than MIN_PERMUTATIONS permutations: they could not show significance.
    """
    if permutations < MIN_PERMUTATIONS:
        raise ValueError(f"permutations is {permutations}; a level of {LEVEL:.0%} needs at least {MIN_PERMUTATIONS}")
    direction = None if points is None else ErrorDirection(points)
    table = SubgroupTable(codes, errors, clusters, unnamed, max_conditions, direction)
    if not table.subgroups or not 0 < errors.sum() < len(errors):
        return SubgroupResult([], len(table.subgroups), table.max_conditions)
    maxima = table.permuted_maxima(np.random.default_rng(seed), permutations, progress)
    critical = float(np.sort(maxima)[-int(LEVEL * (permutations + 1))])
    significant = sorted((group for group in table.subgroups if group.score > critical), key=_by_score)
    failures = []
    for group in table.explain(significant, critical):
        p = (1 + int((maxima >= group.score).sum())) / (1 + permutations)
        failures.append(Failure(group, table.members(group), p, table.same(group, significant)))
    return SubgroupResult(failures, len(table.subgroups), table.max_conditions)


def all_subgroups(codes: np.ndarray, errors: np.ndarray, max_conditions: int = MAX_CONDITIONS) -> list[Subgroup]:
    """Every subgroup with enough predictions, significant or not, the highest score first; `codes` as in `search`."""
    return sorted(SubgroupTable(codes, errors, (), (), max_conditions, None).subgroups, key=_by_score)


def _by_score(group: Subgroup) -> tuple[float, int, tuple[tuple[int, int], ...]]:
    """The highest score first; of equal scores, the simplest subgroup."""
    return -round(group.score, 9), len(group.conditions), group.conditions
