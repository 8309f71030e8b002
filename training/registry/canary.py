"""A canary: a version that predicts a share of the images, chosen by a hash, until it is promoted or rolled back.

The limits say when it is rolled back. What is measured against them is `training/inference/canary_evidence.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from lake.errors import BadInput

SMALLEST_MINIMUM, LARGEST_MINIMUM = 10, 10_000


@dataclass(frozen=True)
class Limits:
    """When a canary is rolled back. docs/predict.md has the measurements behind the defaults.

    `disagreement`: the share of images for which it may predict something else than the promoted version, 0 to 1.
    `latency`: the 95th percentile of its prediction times divided by that of the promoted version, at least 1.
    `errors`: the share of images that it may fail to predict although the promoted version predicts them, 0 to 1.
    `minimum`: how many observations each of the three needs before it can roll a canary back, 10 to 10,000.
    Raises BadInput for values out of range.
    """

    disagreement: float = 0.3
    latency: float = 2.0
    errors: float = 0.01
    minimum: int = 30

    def __post_init__(self) -> None:
        for name in ("disagreement", "errors"):
            if not 0 < getattr(self, name) < 1:
                raise BadInput(f"limit {name} is {getattr(self, name):g}; it must be between 0 and 1")
        if not (math.isfinite(self.latency) and self.latency >= 1):
            raise BadInput(
                f"limit latency is {self.latency:g}; it must be at least 1: it is a ratio of prediction times"
            )
        if not SMALLEST_MINIMUM <= self.minimum <= LARGEST_MINIMUM:
            range_ = f"{SMALLEST_MINIMUM} to {LARGEST_MINIMUM:,}"
            raise BadInput(f"limit minimum is {self.minimum}; it must be {range_} observations")

    def as_json(self) -> str:
        """The limits as a JSON object, as `releases.limits` has them."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        return (
            f"disagreement {self.disagreement:.1%}, latency {self.latency:g} times, errors {self.errors:.1%}, "
            f"after {self.minimum:,} observations"
        )


def limits_of(values: Mapping[str, object]) -> Limits:
    """The limits with these values and defaults for the others. Raises BadInput for unknown names and bad values."""
    known = {field.name: field.type for field in fields(Limits)}
    for name, value in values.items():
        if name not in known:
            raise BadInput(f"no limit {name!r}; the limits are {', '.join(known)}")
        whole = known[name] == "int"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise BadInput(f"limit {name} is {value!r}; it must be a {'whole ' if whole else ''}number")
    return Limits(**values)  # type: ignore[arg-type]


def limits_of_json(text: str | None) -> Limits:
    """The limits that `releases.limits` holds."""
    return limits_of(json.loads(text or "{}"))


def predicts(share: float, model: str, image_id: str) -> bool:
    """Whether a canary with this share predicts the image.

    The same for every server and at every time, and still so at a higher share. The model's name is in the hash, so
    that the images are not those that sampling by image id keeps.
    """
    number = int.from_bytes(hashlib.sha256(f"canary {model} {image_id}".encode()).digest()[:8])
    return number < share * 2**64
