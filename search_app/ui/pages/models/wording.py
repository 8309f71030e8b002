"""Names and formats of the page Models: statuses, metrics, numbers, times."""

from __future__ import annotations

import datetime as dt

from search_app.ui.components.report import Block, alarm

# A sign for each outcome, so that it does not depend on colour.
SIGNS = {"passed": "✓", "failed": "✗", "undecided": "?"}
STATUS = {
    "running": "training …", "done": "done", "stopped": "stopped", "failed": "failed",
    "registered": "registered", "promoted": "promoted", "shadow": "shadow", "retired": "retired",
    "rolled_back": "rolled back", "shadowed": "shadow", "canary": "canary",
}  # fmt: skip
METRICS = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "f1_macro": "macro F1",
    "auroc": "AUROC", "ece": "calibration error", "miou": "mean IoU", "map_50": "mAP at IoU 0.5", "map": "mAP",
    "loss": "loss",
}  # fmt: skip


def standing(status: str, share: float | None) -> str:
    """The name of a status or a release event; a canary's with its share: `canary, 10% of images`."""
    return STATUS[status] if share is None else f"{STATUS[status]}, {100 * share:g}% of images"


def named(metric: str) -> str:
    """The name of a metric on the screen."""
    return METRICS.get(metric, metric.replace("_", " "))


def decimals(value: float | None) -> str:
    """`0.812`; a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """`+0.012`, `−0.030`: above 0 is better; a dash for None."""
    if value is None:
        return "–"
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 0.0005 else "0.000"


def outcome(name: str, blocks: bool, baseline: str) -> str | Block:
    """`✓ passed against 1a2b3c4d`, as a cell of a table; a blocking verdict is highlighted."""
    text = f"{SIGNS[name]} {name} against {baseline}"
    return alarm(text) if blocks else text


def when(moment: dt.datetime | None) -> str:
    """`24 Nov 2026, 10:05` in UTC."""
    return "–" if moment is None else f"{moment:%d %b %Y, %H:%M}"


def span_of(begun: dt.datetime, ended: dt.datetime | None) -> str:
    """The duration: `12 s`, `3 min`, `2.5 h`; a dash while it is running."""
    if ended is None:
        return "–"
    seconds = (ended - begun).total_seconds()
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
