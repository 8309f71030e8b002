"""The value of a label: images found by active search beside random images, at equal budgets.

This is part `value` of `loop`. A probe is fitted on some labelled images. Its weak slice is known only from complaints:
the most confident mistake of each kind. From them an active search finds the kind among unlabelled images: a person
marks pages of 24 until the budget is found, at most LOOKS_A_LABEL looks per label. If the search finds too few, its
next images are taken without a look. The found images get labels, and the probe is fitted again. Looks are reported,
too. Held-out images are never shown, labelled or used to choose.

`cifar10`: eight classes of 4,500 images and two of 45, a tenth of each labelled; accuracy on 500 held-out images of
each of the two. `stream`: as in the demo: 537 labelled monocrystalline cells, then a stream of 537 others and 60
polycrystalline ones; balanced accuracy on held-out polycrystalline cells. `natural`: the same with the data set's own
mix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import data as benchmark_data
from benchmarks.harness import machine
from benchmarks.harness.rounds import ROOT, Options, say
from benchmarks.search import vectors
from embeddings.search.active_search import PAGE, ActiveSearch
from embeddings.vectors import whitening
from training.models import probe

if TYPE_CHECKING:
    from training.models.probe import Probe

BUDGETS = (50, 100, 200, 400)
SEEDS, SEEDS_QUICK = 10, 1
LOOKS_A_LABEL = 10
USUAL, RARE, LABELLED, HELD_OUT = 4_500, 45, 0.1, 500
REGULARISATION = {"cifar10": 0.1, "stream": 0.01, "natural": 0.01}
PICTURE = ROOT / "docs" / "images" / "label-value.png"
TITLES = {
    "cifar10": "CIFAR-10, two classes 100x rarer",
    "stream": "solar cells, the new kind 10 % of the stream",
    "natural": "solar cells, the new kind 59 % of it",
}


@dataclass(frozen=True)
class Case:
    """Images and their split. `kinds`: the name of the weak kind of each image, "" for the others.

    Indices: `known` is labelled, `pool` is unlabelled, `held_out` is the held-out part of the weak slice.
    `metric(predicted, labels)` returns the accuracy.
    """

    vectors: np.ndarray
    labels: np.ndarray
    kinds: np.ndarray
    known: np.ndarray
    pool: np.ndarray
    held_out: np.ndarray
    metric: Callable[[np.ndarray, np.ndarray], float]
    regularisation: float


def measure(options: Options) -> dict[str, Any]:
    """Medians over the seeds by budget. Draws the curves if matplotlib is installed."""
    seeds = range(SEEDS_QUICK if options.quick else SEEDS)
    makers = {"cifar10": _cifar10(benchmark_data.folder(options.data)), "stream": _solar(60), "natural": _solar(None)}
    figures: dict[str, Any] = {"seeds": len(seeds)}
    curves: dict[str, dict[str, np.ndarray]] = {}
    for name, make in makers.items():
        runs = []
        for seed in seeds:
            runs.append(_run(make(seed), seed))
            say(f"label value, {name}, seed {seed}: {runs[-1]}")
        curves[name] = {key: np.array([run[key] for run in runs]) for key in ("found", "random")}
        gains = np.median(curves[name]["found"] - curves[name]["random"], axis=0)
        figures[name] = {
            "without": float(np.median([run["without"] for run in runs])),
            **{
                f"{budget} labels": {
                    **{key: float(np.median(curves[name][key][:, at])) for key in ("found", "random")},
                    "gain": float(gains[at]),
                    "looks": float(np.median([run["looks"][at] for run in runs])),
                    "of the kind": {
                        key: float(np.median([run["of " + key][at] for run in runs])) for key in curves[name]
                    },
                }
                for at, budget in enumerate(BUDGETS)
            },
        }
    left_out = ["quick: label value of one seed"] if options.quick else []
    if not options.quick and machine.installed("matplotlib"):
        draw(curves, PICTURE)
        figures["picture"] = PICTURE.relative_to(ROOT).as_posix()
    elif not options.quick:
        left_out.append("the picture of label value: matplotlib is not installed (extra bench)")
    return {"figures": figures, "left_out": left_out}


def _run(case: Case, seed: int) -> dict[str, Any]:
    first = _fitted(case, case.known)
    shuffled = case.pool[np.random.default_rng([seed, 1]).permutation(len(case.pool))]
    isolated, looks = _isolated(case, first)
    out: dict[str, Any] = {"without": _value(case, first), "looks": looks}
    for name, chosen in (("found", isolated), ("random", [shuffled[:budget] for budget in BUDGETS])):
        out[name] = [_value(case, _fitted(case, np.concatenate([case.known, labelled]), first)) for labelled in chosen]
        out["of " + name] = [int((case.kinds[labelled] != "").sum()) for labelled in chosen]
    return out


def _fitted(case: Case, images: np.ndarray, start: Probe | None = None) -> Probe:
    labels = case.labels[images].tolist()
    return probe.fit(case.vectors[images], labels, case.regularisation, balanced=True, start=start)


def _predictions(case: Case, head: Probe, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities = head.probabilities(case.vectors[images])
    return np.array(head.classes)[probabilities.argmax(axis=1)], probabilities.max(axis=1)


def _value(case: Case, head: Probe) -> float:
    return case.metric(_predictions(case, head, case.held_out)[0], case.labels[case.held_out])


def _isolated(case: Case, first: Probe) -> tuple[list[np.ndarray], list[int]]:
    """The images to label at each budget, and the looks until then. One search per kind, alternating by page."""
    predicted, confidence = _predictions(case, first, case.pool)
    points = whitening.fit(case.vectors[case.pool]).transform(case.vectors[case.pool])
    kinds = case.kinds[case.pool]
    wrong = predicted != case.labels[case.pool]
    searches: dict[str, ActiveSearch] = {}
    isolated: list[int] = []
    for kind in sorted({*kinds.tolist()} - {""}):
        mistakes = np.flatnonzero((kinds == kind) & wrong)
        complaint = int(mistakes[np.argmax(confidence[mistakes])])
        searches[kind] = ActiveSearch(points)
        searches[kind].mark([complaint], 1)
        isolated.append(complaint)
    chosen, counts, looks = [], [], 0
    for budget in BUDGETS:
        while len(isolated) < budget and looks < budget * LOOKS_A_LABEL and len(isolated) < (kinds != "").sum():
            for kind, search in searches.items():
                shown = search.page(PAGE)
                looks += len(shown)
                of_kind = kinds[shown] == kind
                search.mark(shown[of_kind], 1)
                search.mark(shown[~of_kind], -1)
                isolated += [index for index in shown[of_kind].tolist() if index not in isolated]
        # Not enough of the kind: take the next images of the searches in turn.
        pages = [search.page(budget).tolist() for search in searches.values()]
        rest = [index for page in zip(*pages, strict=False) for index in page]
        images = [*dict.fromkeys([*isolated[:budget], *rest])][:budget]
        chosen.append(case.pool[np.array(images)])
        counts.append(looks)
    return chosen, counts


# The cases -------------------------------------------------------------------------------------------------


def _cifar10(folder: Path) -> Callable[[int], Case]:
    cifar = vectors.cifar10(folder)
    names = sorted({*cifar.classes.tolist()})

    def make(seed: int) -> Case:
        rng = np.random.default_rng(seed)
        rare = rng.choice(names, 2, replace=False).tolist()
        known, pool, held_out = list[int](), list[int](), list[int]()
        for name in names:
            indices = rng.permutation(np.flatnonzero(cifar.classes == name))
            count = RARE if name in rare else USUAL
            labelled = round(count * LABELLED)
            held_out += indices[:HELD_OUT].tolist() if name in rare else []
            known += indices[HELD_OUT : HELD_OUT + labelled].tolist()
            pool += indices[HELD_OUT + labelled : HELD_OUT + count].tolist()
        kinds = np.where(np.isin(cifar.classes, rare), cifar.classes, "")
        parts = (np.array(known), np.array(pool), np.array(held_out))
        return Case(cifar.vectors, cifar.classes, kinds, *parts, _accuracy, REGULARISATION["cifar10"])

    return make


def _solar(new: int | None) -> Callable[[int], Case]:
    """`new`: the number of polycrystalline cells in the stream; None: the share of the data set."""
    cells = vectors.solar_cells()
    poly = np.char.startswith(cells.classes, "poly")
    labels = np.array([name.split()[1] for name in cells.classes.tolist()])

    def make(seed: int) -> Case:
        rng = np.random.default_rng(seed)
        ours, others = (rng.permutation(np.flatnonzero(kind)) for kind in (~poly, poly))
        half = len(ours) // 2
        count = new or round((len(ours) - half) * len(others) / len(ours))
        stream = np.concatenate([ours[half:], others[:count]])
        kinds = np.where(poly, "poly", "")
        held_out = others[len(others) // 2 :]
        name = "stream" if new else "natural"
        return Case(cells.vectors, labels, kinds, ours[:half], stream, held_out, _balanced, REGULARISATION[name])

    return make


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float((predicted == labels).mean())


def _balanced(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([(predicted[labels == label] == label).mean() for label in np.unique(labels)]))


def draw(curves: dict[str, dict[str, np.ndarray]], out: Path) -> None:
    """Draws medians by budget; the middle half of the seeds is shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(4 * len(curves), 3.4), constrained_layout=True)
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        for key, colour in (("found", "#c2410c"), ("random", "#64748b")):
            low, middle, high = np.quantile(curve[key], [0.25, 0.5, 0.75], axis=0)
            axis.plot(BUDGETS, middle, "o-", color=colour, label={"found": "found by lakeloop"}.get(key, key))
            axis.fill_between(BUDGETS, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.set_title(TITLES[name], fontsize=10)
        axis.set_xscale("log")
        axis.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axis.minorticks_off()
        axis.set_xlabel("labels")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy on the weak slice")
    axes[0].legend(frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)
