"""Findings: slices of predictions that fail, as sentences, JSON and saved slices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lake import slices
from lake.analytics.statistics import Rate
from lake.sql.where import conjunction

if TYPE_CHECKING:
    from lake.storage.store import Lake

Errors = Literal["judged", "confidence"]


@dataclass(frozen=True)
class Condition:
    """`dimension` (a name of `lake.analytics.dimensions`) has this value; `title`: the dimension's name for people."""

    dimension: str
    title: str
    value: str | None

    def __str__(self) -> str:
        return f"{self.title} {'unknown' if self.value is None else self.value}"


@dataclass(frozen=True)
class FailingSlice:
    """A slice of predictions that fails more often than chance explains.

    With `conditions`, or a cluster's `node` (TREE/PATH), it has a `predicate` over predictions. A slice that nothing
    names has only the `image_ids` of its reviewed predictions.

    `reviewed`: predictions known to be right or wrong; `wrong`: how many are wrong, or the sum of 1 - confidence.
    `error`, `rest`: error rates inside and outside; `worse`: their difference; all with 95 % intervals. `excess`:
    wrong predictions beyond those that the rest's rate would give. `p`: how often chance alone shows any such slice,
    0 to 1, corrected for all that were compared. `images`: image_ids of its most confident errors, at most MAX_IMAGES.
    `same`: other names for nearly the same predictions, with the share they have in common.
    """

    conditions: tuple[Condition, ...]
    node: str | None
    predicate: str | None
    image_ids: list[str]
    reviewed: int
    wrong: float
    error: Rate
    rest: Rate
    worse: Rate
    excess: float
    p: float
    images: list[str]
    same: list[tuple[str, float]]

    @property
    def title(self) -> str:
        """Its name: "camera 7 and site b", "cluster 0.3", "similar images that no column describes"."""
        if self.node is not None:
            return f"cluster {self.node.partition('/')[2]}"
        return " and ".join(map(str, self.conditions)) or "similar images that no column describes"

    def sentence(self, errors: Errors = "judged") -> str:
        """`module type polycrystalline: 72 % wrong of 18 predictions, 56 points worse than the rest`."""
        assert self.error.value is not None
        points = round(100 * (self.worse.value or 0))
        if errors == "confidence":
            return (
                f"{self.title}: mean confidence {1 - self.error.value:.2f} of {self.reviewed:,} predictions, "
                f"{points / 100:.2f} lower than the rest"
            )
        return (
            f"{self.title}: {100 * self.error.value:.0f} % wrong of {self.reviewed:,} predictions, "
            f"{points} point{'' if points == 1 else 's'} worse than the rest"
        )


@dataclass(frozen=True)
class Discovery:
    """`findings`: the failing slices, the highest score first (see `scan_statistic.py`).

    `predictions`: how many were compared, of `total`; `error`: their error rate; `compared`: how many subgroups;
    `max_conditions`: conditions combined at most. `remark`: what could not be compared, and why; None: nothing.
    """

    findings: list[FailingSlice]
    errors: Errors
    predictions: int
    total: int
    error: Rate
    compared: int
    max_conditions: int
    remark: str | None
    seconds: float


def save(lake: Lake, discovery: Discovery, where: str | None = None) -> list[str]:
    """Saves each finding, restricted to predictions that pass `where`, as a slice; returns their ids NAME@VERSION.

    Raises BadInput if one cannot be saved; those before it are saved.
    """
    from lake.access import audit

    saved = []
    for finding in discovery.findings:
        predicate = finding.predicate
        if where is not None and predicate is not None:
            predicate = conjunction(predicate, where)
        definition: dict[str, Any] = {"where": predicate} if predicate else {"ids": finding.image_ids}
        slice_ = slices.create(lake, slug(finding), **definition)
        audit.record(lake, "slice create", slice_.id, detail={"kind": slice_.kind, "definition": slice_.definition})
        saved.append(slice_.id)
    return saved


def slug(finding: FailingSlice) -> str:
    """The finding's title as a slice name: `module-type-polycrystalline`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", finding.title).strip("-._")[:80] or "finding"


def facts(discovery: Discovery) -> dict[str, Any]:
    """A discovery as one JSON object."""
    return {
        "errors": discovery.errors,
        "predictions": discovery.predictions,
        "of": discovery.total,
        "error": discovery.error.as_dict(),
        "looked_at": discovery.compared,
        "conditions": discovery.max_conditions,
        "remark": discovery.remark,
        "seconds": round(discovery.seconds, 3),
        "findings": [
            {
                "title": finding.title,
                "sentence": finding.sentence(discovery.errors),
                "conditions": [
                    {"dimension": c.dimension, "name": c.title, "value": c.value} for c in finding.conditions
                ],
                "node": finding.node,
                "where": finding.predicate,
                "image_ids": finding.image_ids,
                "predictions": finding.reviewed,
                "wrong": finding.wrong if discovery.errors == "confidence" else round(finding.wrong),
                "error": finding.error.as_dict(),
                "rest": finding.rest.as_dict(),
                "worse": finding.worse.as_dict(),
                "excess": round(finding.excess, 2),
                "p": finding.p,
                "images": finding.images,
                "same": [{"title": title, "share": share} for title, share in finding.same],
            }
            for finding in discovery.findings
        ],
    }


def of_facts(facts: dict[str, Any]) -> Discovery:
    """The discovery that `facts` describes, read from JSON: equal, but for the rounding of `excess` and `seconds`."""
    found = [
        FailingSlice(
            conditions=tuple(Condition(c["dimension"], c["name"], c["value"]) for c in finding["conditions"]),
            node=finding["node"],
            predicate=finding["where"],
            image_ids=finding["image_ids"],
            reviewed=finding["predictions"],
            wrong=finding["wrong"],
            error=Rate(**finding["error"]),
            rest=Rate(**finding["rest"]),
            worse=Rate(**finding["worse"]),
            excess=finding["excess"],
            p=finding["p"],
            images=finding["images"],
            same=[(other["title"], other["share"]) for other in finding["same"]],
        )
        for finding in facts["findings"]
    ]
    return Discovery(
        found,
        facts["errors"],
        facts["predictions"],
        facts["of"],
        Rate(**facts["error"]),
        facts["looked_at"],
        facts["conditions"],
        facts["remark"],
        facts["seconds"],
    )
