"""A metric as a team writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def misses(truths: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> float:
    """How many answers are wrong: lower is better."""
    return float(sum(t["label"] != a["label"] for t, a in zip(truths, answers, strict=True)))


misses.higher_is_better = False  # type: ignore[attr-defined]
