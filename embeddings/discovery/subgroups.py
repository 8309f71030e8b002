"""Which groups of answers fail more than chance explains: every combination of discrete values, judged together.

As SliceLine does (Sagadeeva and Boehm, SIGMOD 2021), combinations of one, two and three conditions are enumerated
level by level and cut off below a minimal support, which falls with every condition. The score of a group weighs its
size and its error as one: the log-likelihood ratio of Kulldorff's scan statistic (1997),

    score = n kl(error of the group, error of all) + n' kl(error of the others, error of all), 0 if it fails no more,

and what is chance is measured: errors are dealt out anew among all answers many times, and the greatest score of any
group is noted each time (Westfall and Young 1993). A group whose score more than 1 % of these maxima reach is not
told: so nothing is told in 99 % of lakes where nothing fails, however many groups there were.

A kind that no column names is looked for along a direction of the vectors: a ridge regression of the errors gives each
answer the error it expects from the others' (leave one out), and the highest of these are groups, too. It is fitted
anew for each dealing of errors, so its groups stand in the same maxima.
It knows numbers only: no lake, no images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lake.analytics.statistics import more_errors

SUPPORT_LEAST, SUPPORT_SHARE = 8, 0.01
CONDITIONS_MOST = 3
PERMUTATIONS = 400
# At 0.05 one lake in twenty without a failure would be told of one: too many for what speaks unasked.
LEVEL = 0.01
PERMUTATIONS_FEWEST = 99
# Of answers times combinations of dimensions: above, the third condition is left out, then the second.
CODES_MOST = 40_000_000
# A simpler group is told instead of one with a condition more, unless that one surely fails more than what it leaves.
SIMPLER_ABOVE = 0.01
# Groups that share so much of their images (Jaccard) are one finding under two names.
SAME_FROM = 0.6
_CONSIDERED = 2_000
MOST = 12
# Of n answers those expected to fail most. Of few answers the larger shares alone are groups of enough.
LOOK_SHARES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
RIDGE = 100.0
LOOK = -1  # the dimension of a group along a direction of the vectors; its value counts them
# What has a name is told instead of a cluster or a look that fails hardly more and that it explains.
NAMED_FROM = 0.6
_AT_ONCE = 50


@dataclass(frozen=True)
class Group:
    """Answers that meet all `conditions`, pairs of (dimension, value), both by number; `score` as in the module's text.

    Of a group along a direction of the vectors the only dimension is LOOK.
    """

    conditions: tuple[tuple[int, int], ...]
    size: int
    errors: float
    score: float


@dataclass(frozen=True)
class Failure:
    """A group that surely fails. `p`: how often chance alone gives any group such a score, 0 to 1, all groups counted.
    `same`: other groups of nearly the same answers, the most alike first, with the Jaccard index.
    """

    group: Group
    members: np.ndarray  # bool (n,)
    p: float
    same: list[tuple[Group, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """`failures`, the greatest score first; `looked`: how many groups were compared; `conditions`: at most how many."""

    failures: list[Failure]
    looked: int
    conditions: int


def search(
    codes: np.ndarray,
    errors: np.ndarray,
    points: np.ndarray | None = None,
    *,
    alone: Sequence[int] = (),
    nameless: Sequence[int] = (),
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    conditions: int = CONDITIONS_MOST,
    progress: Callable[[float], None] | None = None,
) -> Found:
    """Groups of answers that fail more than chance explains, none of them explained by an earlier one.

    `codes`: int (n, dimensions), each answer's value of each dimension from 0, or -1 for none. `errors`: (n,), 0 to 1
    each. `points`: float (n, d), the answers' vectors, of few dimensions, to look for kinds without a name in; a row of
    NaN for none. Dimensions in `alone` are clusters: not combined with others; those in `nameless` as well, and nobody
    can call them by a name. `progress` is told the share done, 0 to 1. Raises ValueError for fewer than
    PERMUTATIONS_FEWEST permutations: none of them could be sure.
    """
    if permutations < PERMUTATIONS_FEWEST:
        raise ValueError(f"{permutations} permutations cannot show what happens in {LEVEL:.0%} of cases")
    table = _Table(codes, errors, alone, nameless, conditions, None if points is None else _Looks(points))
    if not table.groups or not 0 < errors.sum() < len(errors):
        return Found([], len(table.groups), table.conditions)
    maxima = table.maxima(np.random.default_rng(seed), permutations, progress)
    critical = float(np.sort(maxima)[-int(LEVEL * (permutations + 1))])
    sure = [one for one in table.groups if one.score > critical]
    sure.sort(key=lambda one: (-round(one.score, 9), len(one.conditions), one.conditions))
    failures = []
    for group in table.explain(sure, critical):
        p = (1 + int((maxima >= group.score).sum())) / (1 + permutations)
        failures.append(Failure(group, table.members(group), p, table.same(group, sure)))
    return Found(failures, len(table.groups), table.conditions)


def groups(codes: np.ndarray, errors: np.ndarray, conditions: int = CONDITIONS_MOST) -> list[Group]:
    """Every group of enough answers, the greatest score first, whatever chance has to say; `codes` as in `search`."""
    found = _Table(codes, errors, (), (), conditions, None).groups
    return sorted(found, key=lambda one: (-round(one.score, 9), len(one.conditions), one.conditions))


def score(errors: np.ndarray, sizes: np.ndarray, all_errors: float, n: int) -> np.ndarray:
    """The score of groups with so many errors among so many answers, (m,) each; 0 where one fails no more than all."""
    inside, outside = errors / sizes, (all_errors - errors) / np.maximum(n - sizes, 1)
    usual = all_errors / n
    found = sizes * _divergence(inside, usual) + (n - sizes) * _divergence(outside, usual)
    return np.where(inside > usual, found, 0.0)


def _divergence(share: np.ndarray, usual: float) -> np.ndarray:
    """Kullback-Leibler divergence of Bernoulli distributions, in nats."""
    share = np.clip(share, 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ones = np.where(share > 0, share * np.log(share / usual), 0.0)
        noughts = np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - usual)), 0.0)
    found: np.ndarray = ones + noughts
    return found


class _Table:
    """Every group of enough answers; each combination of dimensions is one column of cells that part the answers."""

    def __init__(
        self,
        codes: np.ndarray,
        errors: np.ndarray,
        alone: Sequence[int],
        nameless: Sequence[int],
        conditions: int,
        looks: _Looks | None,
    ) -> None:
        self.n, self.errors, self.looks = len(errors), errors.astype(np.float64), looks
        self.nameless = {*nameless, LOOK}
        self.alone = {*alone, *self.nameless}
        self.support = max(SUPPORT_LEAST, int(np.ceil(SUPPORT_SHARE * self.n)))
        self.codes = codes
        self.conditions = 1
        columns: list[np.ndarray] = []  # each (n,): the number of the cell an answer is in, 0 for none that counts
        self.keys: list[tuple[tuple[int, int], ...]] = [()]
        single: dict[tuple[int, ...], np.ndarray] = {}
        for one in range(codes.shape[1]):
            self._add(columns, single, (one,), codes[:, one].astype(np.int64), [codes[:, one] >= 0])
        together = [key[0] for key in single if key[0] not in self.alone]
        before = single
        for level in range(2, conditions + 1):
            wanted = [c for c in itertools.combinations(together, level) if self._possible(c, before)]
            if not wanted or self.n * (len(columns) + len(wanted)) > CODES_MOST:
                break
            now: dict[tuple[int, ...], np.ndarray] = {}
            for combination in wanted:
                parts = [before[part] for part in itertools.combinations(combination, level - 1)]
                self._add(columns, now, combination, self._crossed(combination), [part > 0 for part in parts])
            before, self.conditions = now, level
        self.cells = np.column_stack(columns) if columns else np.zeros((self.n, 0), np.int32)
        self.sizes = np.bincount(self.cells.ravel(), minlength=len(self.keys)).astype(np.float64)
        sums = np.bincount(self.cells.ravel(), np.repeat(self.errors, self.cells.shape[1]), minlength=len(self.keys))
        total = float(self.errors.sum())
        scores = score(sums[1:], self.sizes[1:], total, self.n)
        self.groups = [
            Group(key, int(size), float(wrong), float(points))
            for key, size, wrong, points in zip(self.keys[1:], self.sizes[1:], sums[1:], scores, strict=True)
        ]
        self._looked: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
        self.groups += self._look(np.ones(self.n, bool))
        self._by_key = {one.conditions: one for one in self.groups}

    def _look(self, left: np.ndarray) -> list[Group]:
        """Groups along the direction of the errors among the answers that are `left`, bool (n,)."""
        if self.looks is None or not 0 < self.errors[left].sum() < left.sum():
            return []
        expected = self.looks.expected(np.where(left, self.errors, 0.0)[:, None], left)[:, 0]
        order = np.argsort(-expected, kind="stable")
        found = []
        for size in self.looks.sizes(int((left & self.looks.able).sum()), self.support):
            inside = np.zeros(self.n, bool)
            inside[order[:size]] = True
            wrong = self.errors[inside].sum()
            points = score(np.array([wrong]), np.array([size]), float(self.errors[left].sum()), int(left.sum()))
            key = ((LOOK, len(self._looked)),)
            self._looked[key] = inside
            found.append(Group(key, size, float(wrong), float(points[0])))
        return found

    def _possible(self, combination: tuple[int, ...], before: dict[tuple[int, ...], np.ndarray]) -> bool:
        """Whether all its parts have groups of enough answers: else it can have none."""
        return all(part in before for part in itertools.combinations(combination, len(combination) - 1))

    def _crossed(self, combination: tuple[int, ...]) -> np.ndarray:
        crossed = np.zeros(self.n, np.int64)
        for one in combination:
            crossed = crossed * (int(self.codes[:, one].max(initial=0)) + 1) + self.codes[:, one]
        return crossed

    def _add(
        self,
        columns: list[np.ndarray],
        into: dict[tuple[int, ...], np.ndarray],
        combination: tuple[int, ...],
        crossed: np.ndarray,
        conditions: Sequence[np.ndarray],
    ) -> None:
        """One more column of cells, of those with enough answers among those that meet the conditions."""
        able = np.flatnonzero(np.logical_and.reduce(conditions))
        if len(able) < self.support:
            return
        _, first, place, sizes = np.unique(crossed[able], return_index=True, return_inverse=True, return_counts=True)
        # A cell of nearly all answers is no group: there is no rest to compare with.
        kept = (sizes >= self.support) & (sizes <= self.n - self.support)
        if not kept.any():
            return
        number = np.where(kept, len(self.keys) + np.cumsum(kept) - 1, 0)
        for cell in np.flatnonzero(kept).tolist():
            row = able[first[cell]]
            self.keys.append(tuple((one, int(self.codes[row, one])) for one in combination))
        column = np.zeros(self.n, np.int32)
        column[able] = number[place]
        columns.append(column)
        into[combination] = column

    def maxima(
        self, rng: np.random.Generator, permutations: int, progress: Callable[[float], None] | None
    ) -> np.ndarray:
        """The greatest score of any group when errors are dealt out anew; float64 (permutations,)."""
        wrong = np.flatnonzero(self.errors)
        values = self.errors[wrong]
        simple = bool((values == 1).all())
        total, width = float(values.sum()), self.cells.shape[1]
        found = np.empty(permutations)
        for start in range(0, permutations, _AT_ONCE):
            dealt = np.zeros((self.n, min(_AT_ONCE, permutations - start)), np.float32)
            for turn in range(dealt.shape[1]):
                chosen = rng.choice(self.n, len(wrong), replace=False)
                dealt[chosen, turn] = values
                cells = self.cells[chosen].ravel()
                weights = None if simple else np.repeat(values, width)
                sums = np.bincount(cells, weights, minlength=len(self.keys)).astype(np.float64)
                found[start + turn] = score(sums[1:], self.sizes[1:], total, self.n).max(initial=0.0)
            if self.looks is not None:
                most = self.looks.greatest(dealt, self.support)
                found[start : start + len(most)] = np.maximum(found[start : start + len(most)], most)
            if progress is not None:
                progress((start + dealt.shape[1]) / permutations)
        return found

    def members(self, group: Group) -> np.ndarray:
        """bool (n,): who is in it."""
        if group.conditions in self._looked:
            return self._looked[group.conditions]
        inside: np.ndarray = np.logical_and.reduce([self.codes[:, one] == value for one, value in group.conditions])
        return inside

    def explain(self, sure: Sequence[Group], critical: float) -> list[Group]:
        """The failures behind the groups: each time the greatest score among answers that none so far explains."""
        left = np.ones(self.n, bool)
        masks = {one.conditions: self.members(one) for one in sure[:_CONSIDERED]}
        found: list[Group] = []
        while len(found) < MOST:
            ranked = self._ranked(masks, [*sure[:_CONSIDERED]], left, critical)
            if found and self.looks is not None:
                ranked += [(points, one) for one in self._look(left) if (points := one.score) > critical]
                ranked.sort(key=lambda pair: -pair[0])
            if not ranked:
                break
            best = self._simpler(self._named(ranked, left, critical), critical, left)
            if best in found:
                break
            found.append(best)
            left &= ~self.members(best)
        return found

    def _ranked(
        self, masks: dict[tuple[tuple[int, int], ...], np.ndarray], sure: list[Group], left: np.ndarray, critical: float
    ) -> list[tuple[float, Group]]:
        """The groups by their score among the answers that are left, the greatest first."""
        total, n = float(self.errors[left].sum()), int(left.sum())
        if not sure or not 0 < total < n:
            return []
        inside = [masks[one.conditions] & left for one in sure]
        sizes = np.array([int(one.sum()) for one in inside])
        wrong = np.array([float(self.errors[one].sum()) for one in inside])
        # What is mostly explained already is not told again for what remains of it.
        able = (sizes >= np.maximum(self.support, [one.size / 2 for one in sure])) & (n - sizes >= self.support)
        points = np.where(able, score(wrong, np.maximum(sizes, 1), total, n), 0.0)
        order = np.argsort(-np.round(points, 9), kind="stable")  # of equals the simplest: `sure` is in that order
        return [(float(points[place]), sure[place]) for place in order if points[place] > critical]

    def _named(self, ranked: list[tuple[float, Group]], left: np.ndarray, critical: float) -> Group:
        """The best group; or, if that is a look or a cluster, the best with a better name that explains it."""
        most, best = ranked[0]
        inside = self.members(best)
        for rank in range(self._namelessness(best)):
            for points, one in ranked:
                if points < NAMED_FROM * most:
                    break
                if self._namelessness(one) != rank:
                    continue
                without = left & ~self.members(one)
                size, n, total = int((inside & without).sum()), int(without.sum()), float(self.errors[without].sum())
                if size < self.support or not 0 < total < n:
                    return one
                rest = score(np.array([self.errors[inside & without].sum()]), np.array([size]), total, n)
                if rest[0] <= critical:
                    return one
        return best

    def _namelessness(self, group: Group) -> int:
        """0: values of columns; 1: a cluster that can be named; 2: another, or a direction of the vectors."""
        dimension = group.conditions[0][0]
        return int(dimension in self.alone) + int(dimension in self.nameless)

    def _simpler(self, group: Group, critical: float, left: np.ndarray) -> Group:
        """The group with conditions taken away for as long as what that adds fails about as often."""
        while len(group.conditions) > 1:
            inside = self.members(group)
            wider: list[Group] = []
            for condition in group.conditions:
                parent = self._by_key.get(tuple(one for one in group.conditions if one != condition))
                if parent is None or parent.score <= critical:
                    continue
                added = self.members(parent) & ~inside & left
                p = more_errors(
                    round(group.errors), group.size, round(float(self.errors[added].sum())), int(added.sum())
                )
                if p > SIMPLER_ABOVE:
                    wider.append(parent)
            if not wider:
                return group
            group = max(wider, key=lambda one: one.score)
        return group

    def same(self, group: Group, sure: Sequence[Group]) -> list[tuple[Group, float]]:
        """Other sure groups of nearly the same answers, of one condition, the most alike first."""
        inside = self.members(group)
        found = []
        for one in sure:
            if one.conditions == group.conditions or len(one.conditions) > 1 or one.conditions[0][0] == LOOK:
                continue
            other = self.members(one)
            alike = float((inside & other).sum() / (inside | other).sum())
            if alike >= SAME_FROM:
                found.append((one, alike))
        return sorted(found, key=lambda pair: -pair[1])


class _Looks:
    """Ridge regression of errors on vectors, leave one out: what depends on the vectors alone is computed once."""

    def __init__(self, points: np.ndarray) -> None:
        self.able = ~np.isnan(points).any(axis=1)
        centred = np.where(self.able[:, None], points, 0.0)
        centred = centred - centred[self.able].mean(axis=0) * self.able[:, None]
        self._points = centred / max(float(centred[self.able].std(axis=0).max(initial=0.0)), 1e-12)
        self._whole = self._solver(self.able)

    def _solver(self, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, d) that turns the products of vectors and errors into expectations, and (n,) each answer's own weight."""
        used = np.column_stack([left, self._points * left[:, None]]).astype(np.float64)
        penalty = np.full(used.shape[1], RIDGE)
        penalty[0] = 1e-9
        weights = used @ np.linalg.inv(used.T @ used + np.diag(penalty))
        return weights, np.einsum("ij,ij->i", weights, used)

    def expected(self, errors: np.ndarray, left: np.ndarray | None = None) -> np.ndarray:
        """Expected error of each answer from all others', (n, m) of errors (n, m); -inf for those not `left`."""
        able = self.able if left is None else self.able & left
        weights, own = self._whole if left is None else self._solver(able)
        used = np.column_stack([able, self._points * able[:, None]])
        fitted = weights @ (used.T @ (errors * able[:, None]))
        alone = (fitted - own[:, None] * errors) / np.maximum(1 - own, 1e-9)[:, None]
        found: np.ndarray = np.where(able[:, None], alone, -np.inf)
        return found

    def sizes(self, n: int, support: int) -> list[int]:
        """How many of n answers are in each group along a direction."""
        return sorted({size for share in LOOK_SHARES if (size := round(share * n)) >= support})

    def greatest(self, errors: np.ndarray, support: int) -> np.ndarray:
        """The greatest score of any of its groups for each column of errors (n, m); (m,)."""
        sizes = self.sizes(int(self.able.sum()), support)
        if not sizes:
            return np.zeros(errors.shape[1])
        order = np.argsort(-self.expected(errors), axis=0)[: sizes[-1]]
        sums = np.take_along_axis(errors, order, axis=0).cumsum(axis=0, dtype=np.float64)[np.array(sizes) - 1]
        total = float(errors[:, 0].sum())
        n, each = len(errors), zip(sums, sizes, strict=True)
        scores = np.stack([score(row, np.full(len(row), float(size)), total, n) for row, size in each])
        most: np.ndarray = scores.max(axis=0)
        return most
