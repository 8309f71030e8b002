"""What is odd in a log without being wrong: classes that differ in case or spaces only, moments in 1970 or ahead,
images with two true classes.
"""

from __future__ import annotations

import datetime as dt
import unicodedata
from collections import Counter
from dataclasses import dataclass

from lake.prediction_logs.prediction_rows import PredictionRow
from lake.prediction_logs.times import unlikely

MOST_CLASSES = 10_000
MOST_TRUTHS = 200_000  # images whose true class is compared with that of a later row
SHOWN = 10


@dataclass
class _Moments:
    """Rows of one column whose moment is unlikely, and the first of them."""

    rows: int
    source: str
    first: dt.datetime


class LogNotes:
    """Collects what is odd from the rows that were taken."""

    def __init__(self) -> None:
        self._classes: Counter[str] = Counter()
        self._moments: dict[tuple[str, str], _Moments] = {}
        self._truths: dict[str, str] = {}
        self._disagreeing = ""

    def add(self, source: str, image_id: str, row: PredictionRow) -> None:
        """A row that was taken; `source`: its place."""
        for name in (row.label, row.truth):
            if name is not None and (name in self._classes or len(self._classes) < MOST_CLASSES):
                self._classes[name] += 1
        if row.truth is not None and len(self._truths) < MOST_TRUTHS:
            first = self._truths.setdefault(image_id, row.truth)
            if first != row.truth:
                self._disagreeing = self._disagreeing or f"{source}: {row.truth!r:.80} after {first!r:.80}"
        if row.timestamp is not None:
            self._look("timestamp", row.timestamp, source)
        for column, value in row.promoted.items():
            if isinstance(value, dt.datetime):
                self._look(column, value, source)

    def lines(self) -> list[str]:
        """One sentence for each oddity."""
        alike: dict[str, list[str]] = {}
        for name in sorted(self._classes):
            alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
        groups = [names for names in alike.values() if len(names) > 1]
        classes = [
            "classes that differ only in case, spaces or Unicode form are kept apart: "
            + ", ".join(f"{name!r:.80} ({self._classes[name]:,} rows)" for name in names[:SHOWN])
            for names in groups[:SHOWN]
        ]
        if len(groups) > SHOWN:
            classes.append(f"... and {len(groups) - SHOWN:,} more groups of such classes")
        if self._disagreeing:
            classes.append(f"an image has two true classes; the last one counts; first in {self._disagreeing}")
        return classes + [
            f"{column} is {when} in {found.rows:,} rows, first in {found.source}: {found.first:%Y-%m-%d %H:%M}Z"
            for (column, when), found in self._moments.items()
        ]

    def _look(self, column: str, moment: dt.datetime, source: str) -> None:
        when = unlikely(moment)
        if when is not None:
            found = self._moments.setdefault((column, when), _Moments(0, source, moment))
            found.rows += 1
