"""The pictures of a model card, as PNG: the same facts give the same bytes.

Drawn without pyplot: no state is shared with whoever else draws in this process. Words of users are never read as
formulas, and characters that the font lacks are shown as U+FFFD.
"""

from __future__ import annotations

import functools
import io
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from lake.analytics.calibration import BINS, bin_of
from lake.extras import require
from training.card.markdown import plain

if TYPE_CHECKING:
    from training.card.facts import Answered, Facts

NEW, OLD, PALE = "#1f6feb", "#9a6700", "#d0d7de"
DPI = 110
# More rows or classes than these cannot be read.
MOST_SLICES, MOST_CLASSES = 30, 20


def plots(facts: Facts) -> dict[str, bytes]:
    """PNG files by name; a picture that nothing was recorded for is not among them.

    Raises MissingExtra without matplotlib.
    """
    made = {
        "slices.png": _slices(facts),
        "curves.png": _curves(facts),
        "reliability.png": _reliability(facts.answered),
        "confusion.png": _confusion(facts.answered),
    }
    return {name: png for name, png in made.items() if png is not None}


def bins(answered: Answered) -> list[tuple[int, float, float]]:
    """(answers, mean confidence, share that is right) of every bin of confidence, the least confident first; bins of
    equal width, as ECE has them. An empty bin is (0, nan, nan).
    """
    pairs = [(c, t == s) for t, s, c in zip(answered.true, answered.said, answered.confidence, strict=True)
             if c is not None]  # fmt: skip
    sure = np.array([c for c, _ in pairs], np.float64)
    right = np.array([r for _, r in pairs], np.float64)
    place = bin_of(sure)
    found = []
    for k in range(BINS):
        inside = place == k
        n = int(inside.sum())
        found.append((n, float(sure[inside].mean()), float(right[inside].mean())) if n else (0, np.nan, np.nan))
    return found


def confusion(answered: Answered) -> tuple[list[str], np.ndarray]:
    """Classes, the commonest among the truths first, and int64 (classes, classes): images by what is true (rows) and
    what was said (columns).
    """
    counts = Counter(answered.true)
    classes = sorted({*answered.true, *answered.said}, key=lambda name: (-counts[name], name))
    place = {name: k for k, name in enumerate(classes)}
    table = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(table, ([place[t] for t in answered.true], [place[s] for s in answered.said]), 1)
    return classes, table


def _slices(facts: Facts) -> bytes | None:
    rows = [(name, some[facts.metric]) for name, some in facts.figures.items()
            if facts.metric in some and some[facts.metric].value is not None][:MOST_SLICES]  # fmt: skip
    if not rows:
        return None
    figure, axes = _figure(6.4, 1.2 + 0.42 * len(rows))
    for y, (name, new) in enumerate(rows):
        pairs = [(facts.before.get(name, {}).get(facts.metric), OLD, -0.14), (new, NEW, 0.14)]
        for one, colour, shift in pairs:
            if one is not None and one.value is not None:
                if one.low is not None and one.high is not None:
                    axes.plot([one.low, one.high], [y + shift] * 2, color=colour, linewidth=2, solid_capstyle="round")
                axes.plot([one.value], [y + shift], "o", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), [_shown(name) for name, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color=PALE)
    axes.set_xlabel(f"{_shown(facts.metric)}, 95 % interval", parse_math=False)
    known = [(NEW, facts.title)] + ([(OLD, facts.called(facts.baseline.id))] if facts.baseline else [])
    for colour, said in known:
        axes.plot([], [], "o-", color=colour, label=_shown(said, 40))
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def _curves(facts: Facts) -> bytes | None:
    lines = dict[tuple[str, str], list[tuple[float, float]]]()
    for row in facts.training:
        if row["epoch"] is not None and row["value"] is not None:
            where = row["slice"] or row["split"] or ""
            lines.setdefault((row["metric"], where), []).append((row["epoch"], row["value"]))
    lines = {key: points for key, points in sorted(lines.items()) if len({x for x, _ in points}) > 1}
    names = sorted({metric for metric, _ in lines}, key=lambda name: (name != "loss", name))
    if not names:
        return None
    figure, every = _figure(3.2 * len(names), 2.9, len(names))
    for axes, name in zip(np.atleast_1d(every), names, strict=True):
        for (metric, where), points in lines.items():
            if metric == name:
                axes.plot(*zip(*sorted(points), strict=True), ".-", label=_shown(where, 30))
        axes.set_title(_shown(name), fontsize=9, parse_math=False)
        axes.set_xlabel("epoch")
        axes.grid(color=PALE)
        _legend(axes)
    return _png(figure)


def _reliability(answered: Answered | None) -> bytes | None:
    found = bins(answered) if answered else []
    if not any(n for n, _, _ in found):
        return None
    figure, (axes, below) = _figure(4.2, 4.4, 1, 2, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color=PALE)
    there = [(sure, right) for n, sure, right in found if n]
    axes.plot(*zip(*there, strict=True), "o-", color=NEW)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_ylabel("share right")
    edges = np.arange(BINS) / BINS
    below.bar(edges, [n for n, _, _ in found], 1 / BINS, align="edge", color=NEW, edgecolor="white")
    below.set_xlim(0, 1)
    below.set_ylabel("answers")
    below.set_xlabel("confidence")
    return _png(figure)


def _confusion(answered: Answered | None) -> bytes | None:
    if answered is None or not answered.true:
        return None
    classes, table = confusion(answered)
    said = "" if len(classes) <= MOST_CLASSES else f"; the {MOST_CLASSES} most frequent of {len(classes)} classes"
    classes, table = classes[:MOST_CLASSES], table[:MOST_CLASSES, :MOST_CLASSES]
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.42 * len(classes)
    figure, axes = _figure(side, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(table.shape):
        if table[row, column]:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{table[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    names = [_shown(one, 24) for one in classes]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel(f"said{said}")
    axes.set_ylabel("true")
    return _png(figure)


def _figure(width: float, height: float, columns: int = 1, rows: int = 1, **how: Any) -> tuple[Any, Any]:
    figures = require("matplotlib.figure", "matplotlib", "train")
    figure = figures.Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, **how)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _png(figure: Any) -> bytes:
    agg = require("matplotlib.backends.backend_agg", "matplotlib", "train")
    agg.FigureCanvasAgg(figure)
    written = io.BytesIO()
    # Its version is matplotlib's own business: without it the bytes say what was drawn only.
    figure.savefig(written, format="png", metadata={"Software": None})
    return written.getvalue()


def _shown(said: str, longest: int = 48) -> str:
    """Words as the font can draw them."""
    there = _glyphs()
    return "".join(c if ord(c) in there else "\N{REPLACEMENT CHARACTER}" for c in plain(said, longest))


@functools.cache
def _glyphs() -> frozenset[int]:
    manager = require("matplotlib.font_manager", "matplotlib", "train")
    font = manager.get_font(manager.findfont(manager.FontProperties()))
    return frozenset(font.get_charmap())
