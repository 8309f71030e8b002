"""`looks`: thumbnails that a person looks at to find 90 % of a rare kind of image from one example.

A simulated person knows the true classes and sees 24 thumbnails a page; every thumbnail shown counts. The person
confirms images one by one, or accepts a whole cluster after one page of it; an accepted cluster counts only if at least
nine tenths of it are of the kind.

- `cifar10`: 27,000 training images of nine classes, and one class thinned to 0.5 % of that, each class in turn.
- `solar`: the 2,624 solar cells; the kind is polycrystalline and defective.
- `photographs`: 599 photographs and 12 altered copies of another one (crops, flips, colours); all 12 must be found.

Strategies: `random`, `nearest` (to the example), `drill_down` (clusters opened by their medoids), `active` (active
search), `both` (active search, and accepting pure clusters). References: rankings by the same linear model, which cost
no looks. `in_lake` knows every class in the lake (five-fold); `supervised` knows 1,000 images of the kind outside it.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.harness import data as benchmark_data
from benchmarks.harness.rounds import Options, estimate, say
from benchmarks.search import vectors
from embeddings.clusters.clustering import cluster_vectors, kmeans
from embeddings.search.active_search import POSITIVE_WEIGHT, RIDGE, ActiveSearch
from embeddings.vectors import whitening
from embeddings.vectors.principal_components import reduce

PARTS = ("cifar10", "solar", "photographs")
PAGE = 24
TARGET_SHARE = 0.9
PURE = 0.9
RARE = 0.005
CLASS_SIZE = 3_000
OUTSIDE = 1_000
SEEDS, SEEDS_QUICK = 5, 1
CLASSES_QUICK = 4
PHOTOGRAPHS, PHOTOGRAPHS_QUICK = 40, 8
MEDOIDS = 6
# A cluster with more images than this is opened, a smaller one is paged through.
SMALL = 240
STRATEGIES = ("random", "nearest", "drill_down", "active", "both", "in_lake", "supervised")


@dataclass
class Case:
    """`kind`: bool (n,), the images to find; `share` of them must be found, starting from `example`.

    `outside`: vectors of the kind that are not in the lake, or None.
    """

    vectors: np.ndarray
    kind: np.ndarray
    example: int
    outside: np.ndarray | None = None
    share: float = TARGET_SHARE
    needed: int = field(init=False)

    def __post_init__(self) -> None:
        self.needed = math.ceil(self.share * self.kind.sum())


def measure(options: Options) -> dict[str, Any]:
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {}, "left_out": []}
    folder = benchmark_data.folder(options.data)
    for part in options.parts:
        cases = {"cifar10": _cifar10, "solar": _solar, "photographs": _photographs}[part]
        _measure(document, part, cases(folder, options))
    if "cifar10" in options.parts:
        document["figures"] = document["figures"].pop("cifar10") | document["figures"]
    if options.quick:
        document["left_out"].append(f"quick: {CLASSES_QUICK} classes, one seed")
    return document


def _measure(document: dict[str, Any], part: str, cases: Iterator[tuple[str, Case]]) -> None:
    shares: dict[str, list[float]] = defaultdict(list)
    estimates: list[tuple[float, int, int, int]] = []
    pages: list[float] = []
    seconds: list[float] = []
    named: dict[str, dict[str, list[float]]] = {}
    for name, case in cases:
        size = len(case.vectors)
        points = whitening.fit(case.vectors).transform(case.vectors)
        started = perf_counter()
        active, accepted = _active(case, points, False, estimates)
        seconds.append((perf_counter() - started) / max(1, active / PAGE))
        with_clusters, accepted = _active(case, points, True)
        result = {
            "random": case.share,
            "nearest": _pages(case.vectors @ case.vectors[case.example], case) / size,
            "drill_down": _drill_down(case) / size,
            "active": active / size,
            "both": with_clusters / size,
            "in_lake": _pages(_in_lake(points, case.kind), case) / size,
        }
        if case.outside is not None:
            result["supervised"] = _pages(_supervised(case), case) / size
        pages.append(with_clusters / PAGE)
        for strategy, share in result.items():
            shares[strategy].append(share)
            named.setdefault(name, {}).setdefault(strategy, []).append(share)
        rounded = {strategy: round(share, 3) for strategy, share in result.items()}
        say(f"{part} {name}: {rounded}{f', {accepted} clusters accepted' if accepted else ''}")
    ratios = [b / i for b, i in zip(shares["both"], shares["in_lake"], strict=True)]
    document["figures"][part] = {
        "cases": len(ratios),
        "median_share": {s: float(np.median(shares[s])) for s in STRATEGIES if shares[s]},
        "median_ratio": float(np.median(ratios)),
        "median_pages_of_both": float(np.median(pages)),
        "seconds_a_page_of_active": float(np.median(seconds)),
        "intervals_of_what_is_left_that_hold": float(np.mean([low <= true <= high for _, low, high, true in estimates]))
        if estimates
        else None,
        "median_of_estimated_over_true_left": float(np.median([(e + 1) / (t + 1) for e, _, _, t in estimates]))
        if estimates
        else None,
        "median_share_by_case": {name: {s: float(np.median(v)) for s, v in by.items()} for name, by in named.items()}
        if part != "photographs"
        else {},
    }
    document["ratios"][f"{part}: both / in_lake"] = estimate(ratios)
    document["ratios"][f"{part}: both / random"] = estimate(
        b / r for b, r in zip(shares["both"], shares["random"], strict=True)
    )


# The lakes -------------------------------------------------------------------------------------------------


def _cifar10(folder: Any, options: Options) -> Iterator[tuple[str, Case]]:
    cifar = vectors.cifar10(folder)
    names = sorted(set(cifar.classes.tolist()))
    chosen = names[:: len(names) // CLASSES_QUICK][:CLASSES_QUICK] if options.quick else names
    for seed in range(SEEDS_QUICK if options.quick else SEEDS):
        for name in chosen:
            rng = np.random.default_rng([seed, names.index(name)])
            rare = round(CLASS_SIZE * (len(names) - 1) * RARE)
            members, outside = [], np.empty(0, np.int64)
            for other in names:
                indices = rng.permutation(np.flatnonzero(cifar.classes == other))
                if other == name:
                    indices, outside = indices[:rare], indices[rare : rare + OUTSIDE]
                members.append(indices[:CLASS_SIZE])
            order = rng.permutation(np.concatenate(members))
            kind = cifar.classes[order] == name
            example = int(rng.choice(np.flatnonzero(kind)))
            yield name, Case(cifar.vectors[order], kind, example, cifar.vectors[outside])


def _solar(folder: Any, options: Options) -> Iterator[tuple[str, Case]]:
    cells = vectors.solar_cells()
    kind = cells.classes == "poly defect"
    for seed in range(1 if options.quick else 10):
        example = int(np.random.default_rng(seed).choice(np.flatnonzero(kind)))
        yield "defective polycrystalline", Case(cells.vectors, kind, example)


def _photographs(folder: Any, options: Options) -> Iterator[tuple[str, Case]]:
    photographs, files = vectors.photographs(folder)
    count = PHOTOGRAPHS_QUICK if options.quick else PHOTOGRAPHS
    for chosen in np.random.default_rng(0).permutation(len(files))[:count].tolist():
        copies = vectors.embed(_copies(files[chosen], np.random.default_rng(chosen)), 224)
        together = np.concatenate([np.delete(photographs.vectors, chosen, axis=0), copies])
        kind = np.arange(len(together)) >= len(files) - 1
        yield str(photographs.classes[chosen]), Case(together, kind, len(files) - 1, share=1.0)


def _copies(data: bytes, rng: np.random.Generator) -> Iterator[Image.Image]:
    """12 altered copies: cropped to 0.66 to 0.9 of the area, every second one mirrored, other brightness and colour."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    for number in range(12):
        share = math.sqrt(rng.uniform(0.66, 0.9))
        width, height = int(image.width * share), int(image.height * share)
        left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
        copy = image.crop((left, top, left + width, top + height))
        copy = ImageOps.mirror(copy) if number % 2 else copy
        copy = ImageEnhance.Brightness(copy).enhance(rng.uniform(0.7, 1.4))
        yield ImageEnhance.Color(copy).enhance(rng.uniform(0.3, 1.7))


# The person ------------------------------------------------------------------------------------------------


class _Person:
    """Looks at images, knows which are of the kind, and accepts clusters. `looks` counts thumbnails."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.seen = np.zeros(len(case.kind), bool)
        self.confirmed = np.zeros(len(case.kind), bool)
        self.looks = 0
        self.accepted = 0
        self.confirmed[case.example] = self.seen[case.example] = True

    @property
    def done(self) -> bool:
        return int(self.confirmed.sum()) >= self.case.needed or bool(self.seen.all())

    def look(self, images: np.ndarray) -> np.ndarray:
        """Which images are of the kind, bool. Images seen before do not count as looks."""
        self.looks += int((~self.seen[images]).sum())
        self.seen[images] = True
        matches: np.ndarray = self.case.kind[images]
        self.confirmed[images[matches]] = True
        return matches

    def accept(self, images: np.ndarray) -> None:
        """Accepts all images without looking; they count only if at least PURE of them are of the kind."""
        self.accepted += 1
        self.seen[images] = True
        if self.case.kind[images].mean() >= PURE:
            self.confirmed[images] |= self.case.kind[images]


def _pages(scores: np.ndarray, case: Case) -> int:
    """Looks until the target share is found, paging through a ranking. The example costs no look."""
    person = _Person(case)
    order = np.argsort(-scores, kind="stable")
    order = order[order != case.example]
    for start in range(0, len(order), PAGE):
        person.look(order[start : start + PAGE])
        if person.done:
            break
    return person.looks


def _active(
    case: Case, points: np.ndarray, clusters: bool, estimates: list[tuple[float, int, int, int]] | None = None
) -> tuple[int, int]:
    """Looks and accepted clusters. Appends (expected, low, high, true) to `estimates` at pages 4, 8, 16, ..."""
    person = _Person(case)
    search = ActiveSearch(points)
    search.mark([case.example], 1)
    groups = _ClusterWatch(case) if clusters else None
    page, record = 0, 4
    while not person.done:
        shown = search.page(PAGE)
        matches = person.look(shown)
        search.mark(shown[matches], 1)
        search.mark(shown[~matches], -1)
        page += 1
        if estimates is not None and page == record:
            record *= 2
            remaining = search.remaining()
            if remaining is not None:
                estimates.append(
                    (remaining.expected, remaining.low, remaining.high, int((case.kind & (search.marks == 0)).sum()))
                )
        if groups is not None:
            for cluster in groups.pure(person):
                person.accept(cluster)
                search.mark(cluster, 1)
    return person.looks, person.accepted


class _ClusterWatch:
    """The clusters of an active search: a cluster whose seen images are all of the kind gets a page of its own."""

    MINIMUM_SEEN = 12

    def __init__(self, case: Case) -> None:
        self.case = case
        self.open = [np.arange(len(case.vectors))]
        self.rng = np.random.default_rng(0)

    def pure(self, person: _Person) -> Iterator[np.ndarray]:
        """Yields clusters to accept, each after a look at one page. Mixed clusters are split."""
        queue, kept_open = self.open, []
        while queue:
            cluster = queue.pop()
            seen = cluster[person.seen[cluster]]
            unseen = cluster[~person.seen[cluster]]
            share = self.case.kind[seen].mean() if len(seen) else 0.0
            if len(seen) < self.MINIMUM_SEEN or len(unseen) < 2 * PAGE or share < 0.3:
                kept_open.append(cluster)
            elif share < 0.95:
                if len(seen) < 2 * self.MINIMUM_SEEN or len(cluster) < SMALL:
                    kept_open.append(cluster)
                    continue
                labels = kmeans(reduce(self.case.vectors[cluster], 0), None, 0).labels
                queue += [cluster[labels == label] for label in range(labels.max() + 1)]
            else:
                sample = self.rng.choice(unseen, PAGE, replace=False)
                matches = person.look(sample)
                if matches.mean() >= 0.95:
                    yield cluster[~person.seen[cluster]]
                else:
                    kept_open.append(cluster)
        self.open = kept_open


def _drill_down(case: Case) -> int:
    """Looks of a drill-down: open the cluster with the most promising medoids, page through small clusters."""
    person = _Person(case)
    example = case.vectors[case.example]
    # (expected share of the kind, closeness to the example, images), best last.
    queue: list[tuple[float, float, np.ndarray]] = [(1.0, 1.0, np.arange(len(case.kind)))]
    while queue and not person.done:
        queue.sort(key=lambda node: node[:2])
        expected_share, _, images = queue.pop()
        if len(images) <= SMALL:
            order = images[np.argsort(-(case.vectors[images] @ example), kind="stable")]
            for start in range(0, len(order), PAGE):
                remaining = order[start:]
                matches = person.look(order[start : start + PAGE])
                if person.done:
                    break
                if matches.mean() >= 0.95 and len(remaining) > PAGE:
                    person.accept(remaining[PAGE:])
                    break
                if not matches.any() and len(remaining) > PAGE:  # more promising clusters go first
                    queue.append((expected_share / 4, -1.0, remaining[PAGE:]))
                    break
            continue
        labels = cluster_vectors(case.vectors[images], "auto", seed=0).labels
        if labels.max(initial=0) == 0 and not (labels < 0).any():
            labels = np.arange(len(images)) * (len(images) // SMALL + 1) // len(images)
        for label in np.unique(labels):
            child = images[labels == label]
            centre = case.vectors[child].mean(axis=0)
            medoids = child[np.argsort(-(case.vectors[child] @ centre), kind="stable")[:MEDOIDS]]
            matches = person.look(medoids)
            queue.append(((matches.sum() + expected_share) / (len(matches) + 1), float(centre @ example), child))
    return person.looks


# The references --------------------------------------------------------------------------------------------


def _ridge(rows: np.ndarray, matches: np.ndarray) -> np.ndarray:
    """The linear model of active search with all classes known: ridge regression with heavy positives."""
    weight = np.where(matches, POSITIVE_WEIGHT, 1.0)
    gram = (rows * weight[:, None]).T @ rows + RIDGE * np.eye(rows.shape[1])
    weights: np.ndarray = np.linalg.solve(gram, rows.T @ (weight * np.where(matches, 1.0, -1.0)))
    return weights


def _in_lake(points: np.ndarray, kind: np.ndarray) -> np.ndarray:
    rows = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    fold = np.random.default_rng(0).permutation(len(rows)) % 5
    scores = np.empty(len(rows))
    for index in range(5):
        scores[fold == index] = rows[fold == index] @ _ridge(rows[fold != index], kind[fold != index])
    return scores


def _supervised(case: Case) -> np.ndarray:
    assert case.outside is not None
    whiten = whitening.fit(case.vectors).transform
    together = np.concatenate([case.vectors, case.outside])
    rows = np.concatenate([whiten(together), np.ones((len(together), 1))], axis=1)
    matches = np.arange(len(rows)) >= len(case.vectors)
    scores: np.ndarray = rows[: len(case.vectors)] @ _ridge(rows, matches)
    return scores
