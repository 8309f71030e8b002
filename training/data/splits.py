"""From slices to splits: what a run trains on, validates with and is tested on, pinned image by image.

No image, nor a near-duplicate of it, is in two splits: test goes before validation, validation before training.
Nothing that an evaluation or regression slice holds is trained on, whatever the training slice says. What was taken,
what was left out, and why, is in `Data.facts`; image ids with the ids of their label events are in `Data.items`.
It knows no network, and reads no pixels.
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
class Item:
    """One image of a split with what is true of it."""

    image_id: str
    truth: GroundTruth


@dataclass(frozen=True)
class Data:
    """`items`: a row of ITEMS for each image and use, by use, slice and image_id; `facts`: what goes into the record
    (JSON); `classes`: in the order of the network's outputs.
    """

    items: pa.Table
    facts: dict[str, Any]
    classes: tuple[str, ...]


def truth_of(lake: Lake, made: Slice, task: str) -> pa.Table:
    """image_id, label, boxes, masks of a slice's images that have a label for the task, by image_id.

    The labels it was frozen with; today's of a live slice, and of one made before labels were frozen.
    """
    from lake.storage import schema

    said = ground_truth.of_images(lake, ground_truth.current_events(lake, slices.contents(lake, made)))
    rows = [
        {"image_id": name, "label": one.label, "boxes": one.boxes, "masks": one.masks}
        for name, of in sorted(said.items())
        if (one := of.get(task)) is not None
    ]
    columns = [pa.field("image_id", pa.string()), pa.field("label", pa.string())]
    return pa.Table.from_pylist(
        rows, schema=pa.schema([*columns, pa.field("boxes", schema.BOXES), pa.field("masks", schema.MASKS)])
    )


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
) -> Data:
    """The splits of a run from slices NAME, NAME@VERSION or NAME@TAG.

    Without `validation` slices, a `share` of the training and replay images is set aside: by a hash of the image (of
    the group of its near-duplicates), so the same image is set aside in every run. `known`: classes that come first,
    in this order (those of the model to go on from). Raises BadInput when a slice is not there, and when nothing
    labelled is left to train on.
    """
    if not train:
        raise BadInput("which slice is to be trained on? give --train SLICE; `lakeloop slice list` shows them")
    wanted = {"test": test, "validation": validation, "protected": protected, "train": train, "replay": replay}
    made = {use: [slices.get(lake, name) for name in dict.fromkeys(names)] for use, names in wanted.items()}
    contents = {one.id: _contents(lake, one) for some in made.values() for one in some}
    gathered = _Gathered(lake, task, contents)
    for use in ("test", "validation"):
        gathered.take(use, made[use])
    for one in made["protected"]:
        gathered.protect(one)
    for use in ("train", "replay"):
        gathered.take(use, made[use])
    gathered.drop_what_is_judged(skip=[one.name for use in ("train", "replay") for one in made[use]])
    gathered.drop_near_duplicates()
    if not made["validation"] and share:
        gathered.set_aside(share)
    if not gathered.of("train"):
        why = ", ".join(f"{n:,} {reason}" for reason, n in gathered.left_out.items()) or "it is empty"
        alike = "; where different images look like copies: lakeloop duplicates --threshold 0.999 --keep"
        why += alike if any("near" in reason for reason in gathered.left_out) else ""
        raise BadInput(f"nothing is left to train on in {', '.join(one.id for one in made['train'])}: {why}")
    classes = gathered.classes(known)
    return Data(gathered.table(), gathered.facts(made, classes), classes)


def items(lake: Lake, task: str, table: pa.Table, use: str, slice: str | None = None) -> list[Item]:
    """The images of one split, by image_id, with their statements read by event id: not today's, those of then.

    Images that were erased since are left out.
    """
    chosen = pc.equal(table["use"], use)
    if slice is not None:
        chosen = pc.and_(chosen, pc.equal(table["slice"], slice))
    rows = table.filter(chosen)
    said = ground_truth.of_images(lake, rows.select(["image_id", "label_events"]))
    there = slices.erased(lake, rows["image_id"].to_pylist())
    names = sorted({*rows["image_id"].to_pylist()} - there)
    return [Item(name, said[name][task]) for name in names if task in said.get(name, {})]


def digest(values: Iterable[str]) -> str:
    """SHA-256 of sorted ids, a line each."""
    return hashlib.sha256("".join(f"{one}\n" for one in sorted(values)).encode()).hexdigest()


def hashed_share(name: str) -> float:
    """Where an id falls in [0, 1): evenly spread, the same for ever."""
    return int(hashlib.sha256(f"validation:{name}".encode()).hexdigest()[:13], 16) / 16**13


def components(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Whatever is linked, however indirectly, has the same value: the smallest id of its component."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for one, other in pairs:
        a, b = sorted((root(one), root(other)))
        parent[b] = a
    return {name: root(name) for name in parent}


def _contents(lake: Lake, made: Slice) -> pa.Table:
    return ground_truth.current_events(lake, slices.contents(lake, made))


class _Gathered:
    """Splits while they are being made."""

    def __init__(self, lake: Lake, task: str, contents: dict[str, pa.Table]) -> None:
        self.lake, self.task, self.contents = lake, task, contents
        everything = pa.concat_tables([*contents.values()]) if contents else ITEMS.empty_table()
        self._bytes = lake.known("images", "image_id", sorted({*everything["image_id"].to_pylist()}))
        self.uses: dict[str, tuple[str, str]] = {}  # image -> (use, slice); an image has one
        self.protected: dict[str, list[str]] = {}  # slice -> its images
        self.events: dict[str, list[str]] = {}
        self.labels: dict[str, GroundTruth] = {}
        self.left_out: Counter[str] = Counter()
        self.compared: dict[str, Any] = {"by": "identity"}

    def of(self, *uses: str) -> list[str]:
        return sorted(name for name, (use, _) in self.uses.items() if use in uses)

    def _usable(self, made: Slice) -> list[str]:
        """Its images that have bytes and a label for the task."""
        table = self.contents[made.id]
        said = ground_truth.of_images(self.lake, table)
        found = []
        for name, events in zip(table["image_id"].to_pylist(), table["label_events"].to_pylist(), strict=True):
            if self.task not in said.get(name, {}):
                self.left_out["without a label for the task"] += 1
            elif name not in self._bytes:
                self.left_out["without bytes in the lake"] += 1
            else:
                # Of two slices that froze different labels, the one named first counts.
                self.events.setdefault(name, events)
                self.labels.setdefault(name, said[name][self.task])
                found.append(name)
        return found

    def take(self, use: str, some: Sequence[Slice]) -> None:
        held = {name for names in self.protected.values() for name in names}
        for made in some:
            for name in self._usable(made):
                if use in ("train", "replay") and name in held:
                    self.left_out["in a protected slice"] += 1
                elif name not in self.uses:
                    self.uses[name] = (use, made.id)
                elif use in ("train", "replay") and self.uses[name][0] in ("test", "validation"):
                    self.left_out["held out for validation or test"] += 1

    def protect(self, made: Slice) -> None:
        self.protected[made.id] = self._usable(made)

    def drop_what_is_judged(self, skip: Collection[str]) -> None:
        """What evaluation and regression slices have, or nearly, is not trained on."""
        found = leak_guard.check(self.lake, self.of("train", "replay"), "train")
        own = [one for one in found.slices if one.rpartition("@")[0] in skip]
        if own:
            raise BadInput(f"{own[0]} is for judging models: take away its role before training on it, or use another")
        for name in found.images:
            del self.uses[name]
        if found.images:
            self.left_out[f"in or nearly in {', '.join(found.slices)}"] += len(found.images)

    def drop_near_duplicates(self) -> None:
        """Between the splits as the slices give them."""
        record = next((r for r in self.lake.embedders() if r.dim is not None), None)
        if record is None:
            return
        self.compared = {"by": "likeness", "embedder": record.name}
        self.compared["threshold"] = threshold_of(self.lake, record)
        protected = {name for names in self.protected.values() for name in names}
        for lower, upper in ((("validation",), {*self.of("test")}),
                             (("train", "replay"), {*self.of("test", "validation")} | protected)):  # fmt: skip
            if not upper or not self.of(*lower):
                continue
            found = duplicates.between(self.lake, self.of(*lower), sorted(upper), embedder=record.name)
            for name in {pair.image_id for pair in found.pairs}:
                del self.uses[name]
                self.left_out["near-duplicates of images held out"] += 1
        self.compared["without_vector"] = self._without_vector(record)

    def _without_vector(self, record: Any) -> int:
        names = sorted(self.uses)
        seen = self.lake.look_up("predictions", ["image_id"], "image_id", names, f"{record.column} is not null")
        return len(names) - len({*seen["image_id"].to_pylist()})

    def set_aside(self, share: float) -> None:
        names = self.of("train", "replay")
        group: dict[str, str] = {}
        if self.compared["by"] == "likeness" and len(names) > 1:
            found = duplicates.find(self.lake, names, embedder=self.compared["embedder"])
            group = components((pair.image_id, pair.other) for pair in found.pairs)
        for name in names:
            if hashed_share(group.get(name, name)) < share:
                self.uses[name] = ("validation", self.uses[name][1])

    def classes(self, known: Sequence[str]) -> tuple[str, ...]:
        found = {one for name in self.of("train", "replay") for one in self.labels[name].classes() if one}
        return (*known, *sorted(found - {*known}))

    def table(self) -> pa.Table:
        rows = [
            {"image_id": name, "use": use, "slice": slice, "label_events": self.events[name]}
            for name, (use, slice) in self.uses.items()
        ]
        rows += [
            {"image_id": name, "use": "protected", "slice": slice, "label_events": self.events[name]}
            for slice, names in self.protected.items()
            for name in names
        ]
        order = [("use", "ascending"), ("slice", "ascending"), ("image_id", "ascending")]
        return pa.Table.from_pylist(rows, schema=ITEMS).sort_by(order)

    def facts(self, made: dict[str, list[Slice]], classes: Sequence[str]) -> dict[str, Any]:
        said = []
        for use, some in made.items():
            for one in some:
                names = self.contents[one.id]["image_id"].to_pylist()
                events = pc.list_flatten(self.contents[one.id]["label_events"]).to_pylist()
                said.append(
                    {
                        "id": one.id,
                        "use": use,
                        "live": one.live,
                        "images": len(names),
                        "images_sha256": digest(names),
                        "label_events_sha256": digest(events),
                        "predictions_version": one.predictions_version,
                    }
                )
        splits = {}
        for use in USES[:4]:
            names = self.of(use)
            counts = Counter(label for name in names for label in self.labels[name].classes())
            splits[use] = {
                "images": len(names),
                "images_sha256": digest(names),
                "label_events_sha256": digest(e for name in names for e in self.events[name]),
                "classes": dict(sorted(counts.items())),
            }
        return {
            "slices": said,
            "splits": splits,
            "left_out": dict(self.left_out),
            "compared": self.compared,
            "validation": "slices" if made["validation"] else "hash",
            "classes": [*classes],
        }
