"""The splits of a run from slices: training, replay, validation, test and protected images, pinned one by one.

No image and no near-duplicate of it is in two splits: test takes an image before validation, validation before
training. No image of an evaluation or regression slice is trained on, whatever the training slice says. `Splits.facts`
records what was taken, what was left out and why; `Splits.items` has the image ids with the ids of their label events.
This module knows no network and reads no pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from embeddings.duplicates import duplicates, leak_guard
from embeddings.duplicates.threshold import threshold_of
from lake import slices
from lake.errors import BadInput
from lake.formats.annotation import GroundTruth
from lake.slices import ground_truth

if TYPE_CHECKING:
    from lake.slices import Slice
    from lake.storage.store import Lake

USES = ("train", "replay", "validation", "test", "protected")
ITEMS = pa.schema(
    [
        ("image_id", pa.string()),
        ("use", pa.string()),
        ("slice", pa.string()),
        ("label_events", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class TrainingImage:
    """An image of a split with its ground truth."""

    image_id: str
    ground_truth: GroundTruth


@dataclass(frozen=True)
class Splits:
    """`items`: a row of ITEMS for each image and use, sorted by use, slice and image_id. `facts`: JSON for the run's
    record. `classes`: in the order of the network's outputs.
    """

    items: pa.Table
    facts: dict[str, Any]
    classes: tuple[str, ...]


def ground_truth_of(lake: Lake, slice_: Slice, task: str) -> pa.Table:
    """image_id, label, boxes, masks, crowd_boxes, crowd_masks, incomplete of a slice's images that have a label for the
    task, sorted by image_id.

    The labels are those that the slice froze; today's for a live slice, and for a slice older than frozen labels.
    """
    from lake.storage import schema

    truths = ground_truth.of_images(lake, _contents(lake, slice_))
    rows = [
        {"image_id": name, **vars(truth)}
        for name, by_task in sorted(truths.items())
        if (truth := by_task.get(task)) is not None
    ]
    names = ("image_id", "label", "boxes", "masks", "crowd_boxes", "crowd_masks", "incomplete")
    fields = {field.name: field for field in schema.LABELS.arrow()}
    return pa.Table.from_pylist(rows, schema=pa.schema([fields[name] for name in names]))


def gather(
    lake: Lake,
    task: str,
    *,
    train: Sequence[str],
    replay: Sequence[str] = (),
    validation: Sequence[str] = (),
    test: Sequence[str] = (),
    protected: Sequence[str] = (),
    share: float = 0.15,
    known: Sequence[str] = (),
) -> Splits:
    """The splits of a run from slices NAME, NAME@VERSION or NAME@TAG.

    Without `validation` slices, a `share` of the training and replay images is set aside, by a hash of the image (or of
    its group of near-duplicates): the same image is set aside in every run. `known`: classes that come first, in this
    order (those of the parent model). Raises BadInput if a slice does not exist, or if no labelled image is left to
    train on.
    """
    if not train:
        raise BadInput("name a slice to train on with --train SLICE; `lakeloop slice list` shows the slices")
    names = {"test": test, "validation": validation, "protected": protected, "train": train, "replay": replay}
    chosen = {use: [slices.get(lake, name) for name in dict.fromkeys(named)] for use, named in names.items()}
    contents = {slice_.id: _contents(lake, slice_) for listed in chosen.values() for slice_ in listed}
    builder = _Builder(lake, task, contents)
    for use in ("test", "validation"):
        builder.take(use, chosen[use])
    for slice_ in chosen["protected"]:
        builder.protect(slice_)
    for use in ("train", "replay"):
        builder.take(use, chosen[use])
    builder.drop_evaluated_images(skip=[slice_.name for use in ("train", "replay") for slice_ in chosen[use]])
    builder.drop_near_duplicates()
    if not chosen["validation"] and share:
        builder.set_aside(share)
    if not builder.images_in("train"):
        why = ", ".join(f"{n:,} {reason}" for reason, n in builder.left_out.items()) or "it is empty"
        hint = "; if different images count as near-duplicates: lakeloop duplicates --threshold 0.999 --keep"
        why += hint if any("near" in reason for reason in builder.left_out) else ""
        listed = ", ".join(slice_.id for slice_ in chosen["train"])
        raise BadInput(f"nothing is left to train on in {listed}: {why}")
    classes = builder.classes(known)
    return Splits(builder.table(), builder.facts(chosen, classes), classes)


def images_of(lake: Lake, task: str, table: pa.Table, use: str, slice: str | None = None) -> list[TrainingImage]:
    """The images of one split in `table` (as `Splits.items`), sorted by image_id.

    Their labels are read by event id: they are the labels at the time of the split, not today's. Images that were
    erased since are left out.
    """
    chosen = pc.equal(table["use"], use)
    if slice is not None:
        chosen = pc.and_(chosen, pc.equal(table["slice"], slice))
    rows = table.filter(chosen)
    truths = ground_truth.of_images(lake, rows.select(["image_id", "label_events"]))
    erased = slices.erased(lake, rows["image_id"].to_pylist())
    names = sorted({*rows["image_id"].to_pylist()} - erased)
    return [TrainingImage(name, truths[name][task]) for name in names if task in truths.get(name, {})]


def digest(values: Iterable[str]) -> str:
    """SHA-256 of the sorted ids, one a line."""
    return hashlib.sha256("".join(f"{value}\n" for value in sorted(values)).encode()).hexdigest()


def hashed_share(name: str) -> float:
    """A number in [0, 1) for an id: evenly spread, and always the same for an id."""
    return int(hashlib.sha256(f"validation:{name}".encode()).hexdigest()[:13], 16) / 16**13


def components(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Each id with the smallest id of its connected component. `pairs` are the links."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for first, second in pairs:
        a, b = sorted((root(first), root(second)))
        parent[b] = a
    return {name: root(name) for name in parent}


def _contents(lake: Lake, slice_: Slice) -> pa.Table:
    return ground_truth.current_events(lake, slices.contents(lake, slice_))


class _Builder:
    """Builds the splits: takes images from slices, then drops those that may not be trained on."""

    def __init__(self, lake: Lake, task: str, contents: dict[str, pa.Table]) -> None:
        self.lake, self.task, self.contents = lake, task, contents
        everything = pa.concat_tables([*contents.values()]) if contents else ITEMS.empty_table()
        self._with_bytes = lake.known("images", "image_id", sorted({*everything["image_id"].to_pylist()}))
        self.uses: dict[str, tuple[str, str]] = {}  # image -> its only (use, slice)
        self.protected: dict[str, list[str]] = {}  # slice -> its images
        self.events: dict[str, list[str]] = {}
        self.labels: dict[str, GroundTruth] = {}
        self.left_out: Counter[str] = Counter()
        self.compared: dict[str, Any] = {"by": "identity"}

    def images_in(self, *uses: str) -> list[str]:
        return sorted(name for name, (use, _) in self.uses.items() if use in uses)

    def _usable(self, slice_: Slice) -> list[str]:
        """Its images that have bytes and a complete label for the task."""
        table = self.contents[slice_.id]
        truths = ground_truth.of_images(self.lake, table)
        usable = []
        for name, events in zip(table["image_id"].to_pylist(), table["label_events"].to_pylist(), strict=True):
            if self.task not in truths.get(name, {}):
                self.left_out["without a label for the task"] += 1
            elif truths[name][self.task].incomplete:
                self.left_out["with an incomplete label for the task"] += 1
            elif name not in self._with_bytes:
                self.left_out["without bytes in the lake"] += 1
            else:
                # If two slices froze different labels, those of the slice that is named first count.
                self.events.setdefault(name, events)
                self.labels.setdefault(name, truths[name][self.task])
                usable.append(name)
        return usable

    def take(self, use: str, listed: Sequence[Slice]) -> None:
        protected = self._protected_images()
        for slice_ in listed:
            for name in self._usable(slice_):
                if use in ("train", "replay") and name in protected:
                    self.left_out["in a protected slice"] += 1
                elif name not in self.uses:
                    self.uses[name] = (use, slice_.id)
                elif use in ("train", "replay") and self.uses[name][0] in ("test", "validation"):
                    self.left_out["held out for validation or test"] += 1

    def protect(self, slice_: Slice) -> None:
        self.protected[slice_.id] = self._usable(slice_)

    def _protected_images(self) -> set[str]:
        return {name for names in self.protected.values() for name in names}

    def drop_evaluated_images(self, skip: Collection[str]) -> None:
        """Drops images of evaluation and regression slices, and near-duplicates of them, from training."""
        leaking = leak_guard.check(self.lake, self.images_in("train", "replay"), "train")
        own = [name for name in leaking.slices if name.rpartition("@")[0] in skip]
        if own:
            raise BadInput(
                f"{own[0]} is a slice for evaluation: remove its role before training on it, or use another slice"
            )
        for name in leaking.images:
            del self.uses[name]
        if leaking.images:
            self.left_out[f"in or nearly in {', '.join(leaking.slices)}"] += len(leaking.images)

    def drop_near_duplicates(self) -> None:
        """Drops near-duplicates of images of a split that goes first."""
        record = next((r for r in self.lake.embedders() if r.dim is not None), None)
        if record is None:
            return
        self.compared = {"by": "likeness", "embedder": record.name}
        self.compared["threshold"] = threshold_of(self.lake, record)
        held_out = {*self.images_in("test", "validation")} | self._protected_images()
        for lower, upper in ((("validation",), {*self.images_in("test")}), (("train", "replay"), held_out)):
            if not upper or not self.images_in(*lower):
                continue
            near = duplicates.between(self.lake, self.images_in(*lower), sorted(upper), embedder=record.name)
            for name in {pair.image_id for pair in near.pairs}:
                del self.uses[name]
                self.left_out["near-duplicates of images held out"] += 1
        self.compared["without_vector"] = self._without_vector(record)

    def _without_vector(self, record: Any) -> int:
        names = sorted(self.uses)
        rows = self.lake.look_up("samples", ["image_id"], "image_id", names, f"{record.column} is not null")
        return len(names) - len({*rows["image_id"].to_pylist()})

    def set_aside(self, share: float) -> None:
        names = self.images_in("train", "replay")
        group: dict[str, str] = {}
        if self.compared["by"] == "likeness" and len(names) > 1:
            near = duplicates.find(self.lake, names, embedder=self.compared["embedder"])
            group = components((pair.image_id, pair.other) for pair in near.pairs)
        for name in names:
            if hashed_share(group.get(name, name)) < share:
                self.uses[name] = ("validation", self.uses[name][1])

    def classes(self, known: Sequence[str]) -> tuple[str, ...]:
        labelled = {
            label for name in self.images_in("train", "replay") for label in self.labels[name].classes() if label
        }
        return (*known, *sorted(labelled - {*known}))

    def table(self) -> pa.Table:
        rows = [
            {"image_id": name, "use": use, "slice": slice_id, "label_events": self.events[name]}
            for name, (use, slice_id) in self.uses.items()
        ]
        rows += [
            {"image_id": name, "use": "protected", "slice": slice_id, "label_events": self.events[name]}
            for slice_id, names in self.protected.items()
            for name in names
        ]
        order = [("use", "ascending"), ("slice", "ascending"), ("image_id", "ascending")]
        return pa.Table.from_pylist(rows, schema=ITEMS).sort_by(order)

    def facts(self, chosen: dict[str, list[Slice]], classes: Sequence[str]) -> dict[str, Any]:
        return {
            "slices": [self._slice_facts(use, slice_) for use, listed in chosen.items() for slice_ in listed],
            "splits": {use: self._split_facts(use) for use in USES[:4]},
            "left_out": dict(self.left_out),
            "compared": self.compared,
            "validation": "slices" if chosen["validation"] else "hash",
            "classes": [*classes],
        }

    def _slice_facts(self, use: str, slice_: Slice) -> dict[str, Any]:
        table = self.contents[slice_.id]
        names = table["image_id"].to_pylist()
        return {
            "id": slice_.id,
            "use": use,
            "live": slice_.live,
            "images": len(names),
            "images_sha256": digest(names),
            "label_events_sha256": digest(pc.list_flatten(table["label_events"]).to_pylist()),
            "predictions_version": slice_.predictions_version,
        }

    def _split_facts(self, use: str) -> dict[str, Any]:
        names = self.images_in(use)
        counts = Counter(label for name in names for label in self.labels[name].classes())
        return {
            "images": len(names),
            "images_sha256": digest(names),
            "label_events_sha256": digest(event for name in names for event in self.events[name]),
            "classes": dict(sorted(counts.items())),
        }
