"""Enumerates, scores and permutes all subgroups, and selects those worth reporting."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from embeddings.discovery.error_direction import ErrorDirection
from embeddings.discovery.scan_statistic import DIRECTION, Subgroup, score
from lake.analytics.statistics import more_errors

# A subgroup has at least this many predictions, and this share of all.
MIN_SUPPORT, MIN_SUPPORT_SHARE = 8, 0.01
# Limit for predictions times combinations of dimensions. Above it, the third condition is left out, then the second.
MAX_CELLS = 40_000_000
# A subgroup with one condition fewer is reported instead if the p-value for "the wider part fails less" is above this.
SIMPLER_ABOVE = 0.01
# Subgroups whose predictions overlap by this Jaccard index are one failure under two names.
SAME_FROM = 0.6
# A named subgroup is reported instead of a cluster or direction if it explains it and has this share of its score.
NAMED_FROM = 0.6
MAX_FAILURES = 12
_MAX_CANDIDATES = 2_000
_PERMUTATIONS_AT_ONCE = 50

Conditions = tuple[tuple[int, int], ...]
Cells = dict[tuple[int, ...], np.ndarray]


class SubgroupTable:
    """Every subgroup of `codes` (n, dimensions) with enough predictions; `errors` (n,) are 0 to 1.

    Each combination of dimensions is one column of cells that partition the predictions. Dimensions in `clusters` and
    `unnamed` are not combined with others. `subgroups` has them all; `max_conditions` is how many conditions were
    combined at most.
    """

    def __init__(
        self,
        codes: np.ndarray,
        errors: np.ndarray,
        clusters: Sequence[int],
        unnamed: Sequence[int],
        max_conditions: int,
        direction: ErrorDirection | None,
    ) -> None:
        self.n, self.errors, self._direction = len(errors), errors.astype(np.float64), direction
        self._unnamed = {*unnamed, DIRECTION}
        self._clusters = {*clusters, *self._unnamed}
        self.support = max(MIN_SUPPORT, int(np.ceil(MIN_SUPPORT_SHARE * self.n)))
        self.codes = codes
        self._keys: list[Conditions] = [()]
        self.max_conditions = 1
        columns = self._enumerate(max_conditions)
        self.cells = np.column_stack(columns) if columns else np.zeros((self.n, 0), np.int32)
        self.sizes = np.bincount(self.cells.ravel(), minlength=len(self._keys)).astype(np.float64)
        sums = np.bincount(self.cells.ravel(), np.repeat(self.errors, self.cells.shape[1]), minlength=len(self._keys))
        scores = score(sums[1:], self.sizes[1:], float(self.errors.sum()), self.n)
        self.subgroups = [
            Subgroup(key, int(size), float(wrong), float(points))
            for key, size, wrong, points in zip(self._keys[1:], self.sizes[1:], sums[1:], scores, strict=True)
        ]
        self._along_direction: dict[Conditions, np.ndarray] = {}
        self.subgroups += self._direction_subgroups(np.ones(self.n, bool))
        self._by_conditions = {group.conditions: group for group in self.subgroups}

    def permuted_maxima(
        self, rng: np.random.Generator, permutations: int, progress: Callable[[float], None] | None
    ) -> np.ndarray:
        """The highest score of any subgroup for each random permutation of the errors, float64 (permutations,)."""
        wrong = np.flatnonzero(self.errors)
        values = self.errors[wrong]
        binary = bool((values == 1).all())
        total, width = float(values.sum()), self.cells.shape[1]
        maxima = np.empty(permutations)
        for start in range(0, permutations, _PERMUTATIONS_AT_ONCE):
            permuted = np.zeros((self.n, min(_PERMUTATIONS_AT_ONCE, permutations - start)), np.float32)
            for turn in range(permuted.shape[1]):
                chosen = rng.choice(self.n, len(wrong), replace=False)
                permuted[chosen, turn] = values
                cells = self.cells[chosen].ravel()
                weights = None if binary else np.repeat(values, width)
                sums = np.bincount(cells, weights, minlength=len(self._keys)).astype(np.float64)
                maxima[start + turn] = score(sums[1:], self.sizes[1:], total, self.n).max(initial=0.0)
            if self._direction is not None:
                highest = self._direction.highest_scores(permuted, self.support)
                end = start + len(highest)
                maxima[start:end] = np.maximum(maxima[start:end], highest)
            if progress is not None:
                progress((start + permuted.shape[1]) / permutations)
        return maxima

    def members(self, group: Subgroup) -> np.ndarray:
        """Which predictions are in the subgroup, bool (n,)."""
        if group.conditions in self._along_direction:
            return self._along_direction[group.conditions]
        inside: np.ndarray = np.logical_and.reduce([self.codes[:, dim] == value for dim, value in group.conditions])
        return inside

    def explain(self, significant: Sequence[Subgroup], critical: float) -> list[Subgroup]:
        """The failures behind the significant subgroups, at most MAX_FAILURES.

        Repeatedly takes the subgroup with the highest score among predictions that no earlier one explains.
        """
        remaining = np.ones(self.n, bool)
        candidates = [*significant[:_MAX_CANDIDATES]]
        masks = {group.conditions: self.members(group) for group in candidates}
        failures: list[Subgroup] = []
        while len(failures) < MAX_FAILURES:
            ranked = self._ranked(masks, candidates, remaining, critical)
            if failures and self._direction is not None:
                groups = self._direction_subgroups(remaining)
                ranked += [(group.score, group) for group in groups if group.score > critical]
                ranked.sort(key=lambda pair: -pair[0])
            if not ranked:
                break
            best = self._simpler(self._named(ranked, remaining, critical), critical, remaining)
            if best in failures:
                break
            failures.append(best)
            remaining &= ~self.members(best)
        return failures

    def same(self, group: Subgroup, significant: Sequence[Subgroup]) -> list[tuple[Subgroup, float]]:
        """Other significant subgroups with one condition and nearly the same predictions, with the Jaccard index.

        The most similar come first.
        """
        inside = self.members(group)
        similar = []
        for other in significant:
            if other.conditions == group.conditions or len(other.conditions) > 1:
                continue
            if other.conditions[0][0] == DIRECTION:
                continue
            members = self.members(other)
            jaccard = float((inside & members).sum() / (inside | members).sum())
            if jaccard >= SAME_FROM:
                similar.append((other, jaccard))
        return sorted(similar, key=lambda pair: -pair[1])

    # Enumeration -------------------------------------------------------------------------------------------

    def _enumerate(self, max_conditions: int) -> list[np.ndarray]:
        """Columns (n,) of cell numbers, 0 for a prediction in no cell; one column per combination of dimensions."""
        columns: list[np.ndarray] = []
        single: Cells = {}
        for dim in range(self.codes.shape[1]):
            self._add(columns, single, (dim,), self.codes[:, dim].astype(np.int64), [self.codes[:, dim] >= 0])
        combinable = [key[0] for key in single if key[0] not in self._clusters]
        previous = single
        for level in range(2, max_conditions + 1):
            combinations = [c for c in itertools.combinations(combinable, level) if self._possible(c, previous)]
            if not combinations or self.n * (len(columns) + len(combinations)) > MAX_CELLS:
                break
            current: Cells = {}
            for combination in combinations:
                parts = [previous[part] for part in itertools.combinations(combination, level - 1)]
                self._add(columns, current, combination, self._crossed(combination), [part > 0 for part in parts])
            previous, self.max_conditions = current, level
        return columns

    def _possible(self, combination: tuple[int, ...], previous: Cells) -> bool:
        """Whether every part of the combination has subgroups; without them the combination has none either."""
        return all(part in previous for part in itertools.combinations(combination, len(combination) - 1))

    def _crossed(self, combination: tuple[int, ...]) -> np.ndarray:
        """One number per combination of values."""
        crossed = np.zeros(self.n, np.int64)
        for dim in combination:
            crossed = crossed * (int(self.codes[:, dim].max(initial=0)) + 1) + self.codes[:, dim]
        return crossed

    def _add(
        self,
        columns: list[np.ndarray],
        into: Cells,
        combination: tuple[int, ...],
        crossed: np.ndarray,
        conditions: Sequence[np.ndarray],
    ) -> None:
        """Adds a column of the cells with enough predictions, among the predictions that meet the conditions."""
        able = np.flatnonzero(np.logical_and.reduce(conditions))
        if len(able) < self.support:
            return
        _, first, position, sizes = np.unique(crossed[able], return_index=True, return_inverse=True, return_counts=True)
        # A cell of nearly all predictions is no subgroup: there is no rest to compare it with.
        large_enough = (sizes >= self.support) & (sizes <= self.n - self.support)
        if not large_enough.any():
            return
        number = np.where(large_enough, len(self._keys) + np.cumsum(large_enough) - 1, 0)
        for cell in np.flatnonzero(large_enough).tolist():
            row = able[first[cell]]
            self._keys.append(tuple((dim, int(self.codes[row, dim])) for dim in combination))
        column = np.zeros(self.n, np.int32)
        column[able] = number[position]
        columns.append(column)
        into[combination] = column

    def _direction_subgroups(self, remaining: np.ndarray) -> list[Subgroup]:
        """Subgroups along the direction of the errors among the predictions `remaining`, bool (n,)."""
        if self._direction is None or not 0 < self.errors[remaining].sum() < remaining.sum():
            return []
        expected = self._direction.expected(np.where(remaining, self.errors, 0.0)[:, None], remaining)[:, 0]
        order = np.argsort(-expected, kind="stable")
        groups = []
        for size in self._direction.sizes(int((remaining & self._direction.usable).sum()), self.support):
            inside = np.zeros(self.n, bool)
            inside[order[:size]] = True
            wrong = self.errors[inside].sum()
            total, n = float(self.errors[remaining].sum()), int(remaining.sum())
            points = score(np.array([wrong]), np.array([size]), total, n)
            key = ((DIRECTION, len(self._along_direction)),)
            self._along_direction[key] = inside
            groups.append(Subgroup(key, size, float(wrong), float(points[0])))
        return groups

    # Selection ---------------------------------------------------------------------------------------------

    def _ranked(
        self, masks: dict[Conditions, np.ndarray], candidates: list[Subgroup], remaining: np.ndarray, critical: float
    ) -> list[tuple[float, Subgroup]]:
        """Score among the remaining predictions, and subgroup; the highest score first."""
        total, n = float(self.errors[remaining].sum()), int(remaining.sum())
        if not candidates or not 0 < total < n:
            return []
        inside = [masks[group.conditions] & remaining for group in candidates]
        sizes = np.array([int(mask.sum()) for mask in inside])
        wrong = np.array([float(self.errors[mask].sum()) for mask in inside])
        # A subgroup that is mostly explained already is not reported for the small part that is not.
        least = np.maximum(self.support, [group.size / 2 for group in candidates])
        able = (sizes >= least) & (n - sizes >= self.support)
        points = np.where(able, score(wrong, np.maximum(sizes, 1), total, n), 0.0)
        # Of equal scores the simplest comes first: `candidates` is in that order.
        order = np.argsort(-np.round(points, 9), kind="stable")
        return [(float(points[i]), candidates[i]) for i in order if points[i] > critical]

    def _named(self, ranked: list[tuple[float, Subgroup]], remaining: np.ndarray, critical: float) -> Subgroup:
        """The best subgroup; if it is a cluster or a direction, the best one with a better name that explains it."""
        highest, best = ranked[0]
        inside = self.members(best)
        for rank in range(self._namelessness(best)):
            for points, group in ranked:
                if points < NAMED_FROM * highest:
                    break
                if self._namelessness(group) != rank:
                    continue
                rest = remaining & ~self.members(group)
                size, n, total = int((inside & rest).sum()), int(rest.sum()), float(self.errors[rest].sum())
                if size < self.support or not 0 < total < n:
                    return group
                unexplained = score(np.array([self.errors[inside & rest].sum()]), np.array([size]), total, n)
                if unexplained[0] <= critical:
                    return group
        return best

    def _namelessness(self, group: Subgroup) -> int:
        """0: values of columns; 1: a cluster with a name; 2: any other cluster, or a direction of the vectors."""
        dimension = group.conditions[0][0]
        return int(dimension in self._clusters) + int(dimension in self._unnamed)

    def _simpler(self, group: Subgroup, critical: float, remaining: np.ndarray) -> Subgroup:
        """The subgroup without the conditions whose removal adds predictions that fail about as often."""
        while len(group.conditions) > 1:
            inside = self.members(group)
            wider: list[Subgroup] = []
            for condition in group.conditions:
                others = tuple(other for other in group.conditions if other != condition)
                parent = self._by_conditions.get(others)
                if parent is None or parent.score <= critical:
                    continue
                added = self.members(parent) & ~inside & remaining
                added_errors = round(float(self.errors[added].sum()))
                if more_errors(round(group.errors), group.size, added_errors, int(added.sum())) > SIMPLER_ABOVE:
                    wider.append(parent)
            if not wider:
                return group
            group = max(wider, key=lambda parent: parent.score)
        return group
