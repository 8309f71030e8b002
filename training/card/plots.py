"""The plots of a model card, as PNG files. The same facts give the same bytes.

They are drawn without pyplot, so they share no state with other plots of the process. Text of users is never read as a
formula, and characters that the font lacks are drawn as U+FFFD.
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
    from training.card.facts import CardFacts, LabelledPredictions

NEW, OLD, PALE = "#1f6feb", "#9a6700", "#d0d7de"
DPI = 110
# More rows or classes than these cannot be read.
MOST_SLICES, MOST_CLASSES = 30, 20


def plots(facts: CardFacts) -> dict[str, bytes]:
    """PNG files by name, without plots for which nothing was recorded. Raises MissingExtra without matplotlib."""
    files = {
        "slices.png": _slices(facts),
        "curves.png": _curves(facts),
        "reliability.png": _reliability(facts.predictions),
        "confusion.png": _confusion(facts.predictions),
    }
    return {name: png for name, png in files.items() if png is not None}


def bins(predictions: LabelledPredictions) -> list[tuple[int, float, float]]:
    """(predictions, mean confidence, accuracy) of each bin of confidence, in ascending order; the bins are those of the
    expected calibration error. An empty bin is (0, nan, nan).
    """
    rows = zip(predictions.ground_truth, predictions.predicted, predictions.confidence, strict=True)
    known = [(confidence, label == predicted) for label, predicted, confidence in rows if confidence is not None]
    confidence = np.array([value for value, _ in known], np.float64)
    correct = np.array([value for _, value in known], np.float64)
    bin_numbers = bin_of(confidence)
    result = []
    for k in range(BINS):
        inside = bin_numbers == k
        n = int(inside.sum())
        result.append(
            (n, float(confidence[inside].mean()), float(correct[inside].mean())) if n else (0, np.nan, np.nan)
        )
    return result


def confusion(predictions: LabelledPredictions) -> tuple[list[str], np.ndarray]:
    """Classes, most frequent in the ground truth first, and int64 (classes, classes): numbers of images by ground truth
    (rows) and prediction (columns).
    """
    counts = Counter(predictions.ground_truth)
    classes = sorted({*predictions.ground_truth, *predictions.predicted}, key=lambda name: (-counts[name], name))
    index = {name: k for k, name in enumerate(classes)}
    table = np.zeros((len(classes), len(classes)), np.int64)
    rows, columns = ([index[name] for name in names] for names in (predictions.ground_truth, predictions.predicted))
    np.add.at(table, (rows, columns), 1)
    return classes, table


def _slices(facts: CardFacts) -> bytes | None:
    rows = [(name, values[facts.main_metric]) for name, values in facts.values.items()
            if facts.main_metric in values and values[facts.main_metric].value is not None][:MOST_SLICES]  # fmt: skip
    if not rows:
        return None
    figure, axes = _figure(6.4, 1.2 + 0.42 * len(rows))
    for y, (name, new) in enumerate(rows):
        pairs = [(facts.baseline_values.get(name, {}).get(facts.main_metric), OLD, -0.14), (new, NEW, 0.14)]
        for value, colour, shift in pairs:
            if value is not None and value.value is not None:
                if value.low is not None and value.high is not None:
                    axes.plot(
                        [value.low, value.high], [y + shift] * 2, color=colour, linewidth=2, solid_capstyle="round"
                    )
                axes.plot([value.value], [y + shift], "o", color=colour, markersize=5)
    axes.set_yticks(range(len(rows)), [_drawable(name) for name, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", color=PALE)
    axes.set_xlabel(f"{_drawable(facts.main_metric)}, 95 % interval", parse_math=False)
    known = [(NEW, facts.title)] + ([(OLD, facts.name_of(facts.baseline.id))] if facts.baseline else [])
    for colour, label in known:
        axes.plot([], [], "o-", color=colour, label=_drawable(label, 40))
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return _png(figure)


def _curves(facts: CardFacts) -> bytes | None:
    lines = dict[tuple[str, str], list[tuple[float, float]]]()
    for row in facts.training:
        if row["epoch"] is not None and row["value"] is not None:
            images = row["slice"] or row["split"] or ""
            lines.setdefault((row["metric"], images), []).append((row["epoch"], row["value"]))
    lines = {key: points for key, points in sorted(lines.items()) if len({x for x, _ in points}) > 1}
    names = sorted({metric for metric, _ in lines}, key=lambda name: (name != "loss", name))
    if not names:
        return None
    figure, grid = _figure(3.2 * len(names), 2.9, len(names))
    for axes, name in zip(np.atleast_1d(grid), names, strict=True):
        for (metric, images), points in lines.items():
            if metric == name:
                axes.plot(*zip(*sorted(points), strict=True), ".-", label=_drawable(images, 30))
        axes.set_title(_drawable(name), fontsize=9, parse_math=False)
        axes.set_xlabel("epoch")
        axes.grid(color=PALE)
        _legend(axes)
    return _png(figure)


def _reliability(predictions: LabelledPredictions | None) -> bytes | None:
    binned = bins(predictions) if predictions else []
    if not any(n for n, _, _ in binned):
        return None
    figure, (axes, below) = _figure(4.2, 4.4, 1, 2, height_ratios=[3, 1])
    axes.plot([0, 1], [0, 1], color=PALE)
    points = [(confidence, accuracy) for n, confidence, accuracy in binned if n]
    axes.plot(*zip(*points, strict=True), "o-", color=NEW)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy")
    edges = np.arange(BINS) / BINS
    below.bar(edges, [n for n, _, _ in binned], 1 / BINS, align="edge", color=NEW, edgecolor="white")
    below.set_xlim(0, 1)
    below.set_ylabel("predictions")
    below.set_xlabel("confidence")
    return _png(figure)


def _confusion(predictions: LabelledPredictions | None) -> bytes | None:
    if predictions is None or not predictions.ground_truth:
        return None
    classes, table = confusion(predictions)
    cut = "" if len(classes) <= MOST_CLASSES else f"; the {MOST_CLASSES} most frequent of {len(classes)} classes"
    classes, table = classes[:MOST_CLASSES], table[:MOST_CLASSES, :MOST_CLASSES]
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = 2.2 + 0.42 * len(classes)
    figure, axes = _figure(side, side)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(table.shape):
        if table[row, column]:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{table[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    names = [_drawable(name, 24) for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel(f"prediction{cut}")
    axes.set_ylabel("ground truth")
    return _png(figure)


def _figure(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    figures = require("matplotlib.figure", "matplotlib", "train")
    figure = figures.Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _png(figure: Any) -> bytes:
    agg = require("matplotlib.backends.backend_agg", "matplotlib", "train")
    agg.FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    # Without the version of matplotlib, so that the bytes depend on the plot only.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _drawable(text: str, longest: int = 48) -> str:
    """The text with characters that the font lacks as U+FFFD."""
    glyphs = _glyphs()
    return "".join(c if ord(c) in glyphs else "\N{REPLACEMENT CHARACTER}" for c in plain(text, longest))


@functools.cache
def _glyphs() -> frozenset[int]:
    manager = require("matplotlib.font_manager", "matplotlib", "train")
    font = manager.get_font(manager.findfont(manager.FontProperties()))
    return frozenset(font.get_charmap())
