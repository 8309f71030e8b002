"""What became of everything that an ingest looked at: counts, and every refusal with its place."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lake.formats.annotation import Annotations


@dataclass
class IngestReport:
    """Counts of an ingest. Every file or row counts once as new, known, rejected or passed over.

    `rejected`: every refusal, with its source and the reason. `converted`: how often something was taken in another
    form or left aside, by what was done. `incomplete`: images of which a part of what was said was refused, by task.
    `passed_over`: files that are nothing to ingest, by reason. `notes`: what is odd and no fault, one sentence each.
    """

    images_new: int = 0
    images_known: int = 0
    predictions_new: int = 0
    predictions_known: int = 0
    labels_new: int = 0
    labels_known: int = 0
    rejected: list[dict[str, str]] = field(default_factory=list)
    converted: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {name: dict(getattr(self, name)) for name in ("converted", "incomplete", "passed_over")}

    def reject(self, source: str, reason: str) -> None:
        self.rejected.append({"source": source, "reason": reason})

    def count_annotations(self, annotations: Annotations) -> None:
        """Adds what a reader rejected, converted and left incomplete of one image."""
        for source, reason in annotations.rejected:
            self.reject(source, reason)
        self.converted.update(sentence for _, sentence in annotations.converted)
        self.incomplete.update(
            annotations.incomplete | {truth.task for truth in annotations.ground_truths if truth.incomplete}
        )

    def lines(self) -> list[str]:
        """The report for a terminal: one line of counts, then one for each other group that is not empty."""
        counts = (
            f"images {self.images_new:,} new, {self.images_known:,} known; "
            f"predictions {self.predictions_new:,} new, {self.predictions_known:,} known; "
            f"labels {self.labels_new:,} new, {self.labels_known:,} known; "
            f"rejected {len(self.rejected):,}; {self.seconds:.1f} s"
        )
        groups = {"converted": self.converted, "passed over": self.passed_over}
        return [
            counts,
            *(f"incomplete   {n:,} images for {task}" for task, n in self.incomplete.most_common()),
            *(f"{name:<12} {n:,}: {reason}" for name, group in groups.items() for reason, n in group.most_common()),
            *(f"note         {note}" for note in self.notes),
        ]
