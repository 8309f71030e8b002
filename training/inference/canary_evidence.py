"""What a server measures of a canary beside the promoted version, and whether that passes the canary's limits.

The decision may be taken after every observation: its intervals hold at all looks at once, so that a canary within all
limits is rolled back with a probability of at most 5 % in its whole life. It knows neither lake nor server.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lake.analytics.statistics import Rate, always_valid, likelihood_of_share

if TYPE_CHECKING:
    from training.registry.canary import Limits
    from training.tasks.task import Prediction

# Three limits share the probability of a false alarm (Bonferroni).
FALSE_ALARM = 0.05 / 3
# By definition of the percentile, this share of the promoted version's times lies beyond it.
BEYOND_P95 = 0.05
# After this many distinct images the rate of disagreement is known to 2 percentage points: the comparison ends.
MOST_COMPARED = 10_000
# The newest prediction times, of which the percentiles are taken.
TIMES = 1_000


class Evidence:
    """The counts about one canary. One thread writes; others may read `facts`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.images = self.failed = 0
        self.differ = 0
        self.measured = self.slow = 0
        self._compared: set[str] = set()
        self._times: deque[float] = deque(maxlen=TIMES)
        self._promoted_times: deque[float] = deque(maxlen=TIMES)

    @property
    def complete(self) -> bool:
        """Whether no further image needs to be compared."""
        return len(self._compared) >= MOST_COMPARED

    def add_results(self, predicted: int, failed: int = 0) -> None:
        """Images that the canary predicted, and that only the promoted version predicted because the canary failed."""
        self.images += predicted + failed
        self.failed += failed

    def add_comparison(self, image_id: str, canary: Prediction, promoted: Prediction) -> None:
        """Both versions' predictions of an image. The same image counts once: asking twice is no new evidence."""
        if image_id not in self._compared:
            self._compared.add(image_id)
            self.differ += differ(canary, promoted)

    def add_times(self, canary: float, promoted: float) -> None:
        """Seconds that both versions took for the same images, one after the other."""
        # The percentile of the times so far, without this one: then the observations stay independent of it.
        if len(self._promoted_times) >= self.limits.minimum:
            self.measured += 1
            self.slow += canary > self.limits.latency * percentile(self._promoted_times)
        self._times.append(canary)
        self._promoted_times.append(promoted)

    def objection(self) -> str | None:
        """Why the canary must be rolled back: the limit that it passes, with the numbers. None if it passes none."""
        limits = self.limits
        if self._above(self.failed, self.images, limits.errors):
            return f"it failed to predict {self._rate(self.failed, self.images)}; the limit is {limits.errors:.1%}"
        if self._above(self.differ, len(self._compared), limits.disagreement):
            rate = self._rate(self.differ, len(self._compared))
            return f"it disagrees with the promoted version on {rate}; the limit is {limits.disagreement:.1%}"
        if self._above(self.slow, self.measured, BEYOND_P95):
            times = f"{1e3 * percentile(self._times):,.0f} ms against {1e3 * percentile(self._promoted_times):,.0f} ms"
            ratio = f"{self.latency_ratio():.2f} times the promoted version's ({times}, {self.measured:,} measured)"
            return f"its 95th percentile of prediction times is {ratio}; the limit is {limits.latency:g} times"
        return None

    def latency_ratio(self) -> float | None:
        """The 95th percentile of the canary's times divided by that of the promoted version's; None without times."""
        times = percentile(self._promoted_times)
        return percentile(self._times) / times if times else None

    def facts(self) -> dict[str, Any]:
        """The measurements as JSON holds them; rates with intervals that hold at every look at once."""
        return {
            "images": self.images,
            "errors": _plain(always_valid(self.failed, self.images)),
            "disagreement": _plain(always_valid(self.differ, len(self._compared))),
            "latency_ratio": self.latency_ratio(),
        }

    def _above(self, hits: int, n: int, limit: float) -> bool:
        enough = n >= self.limits.minimum and hits > limit * n
        return enough and likelihood_of_share(hits, n, limit) <= FALSE_ALARM

    def _rate(self, hits: int, n: int) -> str:
        rate = always_valid(hits, n, FALSE_ALARM)
        return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}) of {n:,} images"


def differ(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions differ as the view `shadow_disagreements` counts it: another label, or another number of
    boxes or masks.
    """
    return (one.label, len(one.boxes), len(one.masks)) != (other.label, len(other.boxes), len(other.masks))


def percentile(times: Sequence[float] | deque[float], share: float = 1 - BEYOND_P95) -> float:
    """The smallest of the times that at least this share of them does not exceed; 0 if there are none."""
    ordered = sorted(times)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0


def _plain(rate: Rate) -> dict[str, float | int | None]:
    return {"value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n}
