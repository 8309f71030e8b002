"""What is different between two slices, or two versions of one; and how a slice came to be what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from lake.slices import members as resolving
from lake.slices import versions
from lake.slices.naming import unknown
from lake.slices.versions import Slice

if TYPE_CHECKING:
    import pyarrow as pa

    from lake.storage.store import Lake

_SAID = ("task", "label", "boxes", "masks")


@dataclass(frozen=True)
class SliceDifference:
    """From one slice to another. Each list has image_ids, sorted; erased images are in none.

    `labels_changed`: in both, with labels that say another thing; None when one of them was made before labels were
    frozen. `kept`: how many are in both. `erased`: distinct images of either that were erased.
    """

    before: str
    after: str
    added: list[str]
    removed: list[str]
    labels_changed: list[str] | None
    kept: int
    erased: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def diff(lake: Lake, before: Slice, after: Slice) -> SliceDifference:
    """What is different in `after`, exactly."""
    left, right = _labels_of(resolving.contents(lake, before)), _labels_of(resolving.contents(lake, after))
    both = left.keys() & right.keys()
    changed: list[str] | None = None
    if not any(said is None for part in (left, right) for said in part.values()):
        changed = _changed(lake, {name: (left[name] or (), right[name] or ()) for name in both})
    gone = set().union(*(_erased_of(lake, one) for one in (before, after)))
    return SliceDifference(
        before.id,
        after.id,
        sorted(right.keys() - left.keys()),
        sorted(left.keys() - right.keys()),
        changed,
        len(both),
        len(gone),
    )


def erased_count(lake: Lake, made: Slice) -> int:
    """How many of the images it was frozen with were erased since."""
    return len(_erased_of(lake, made))


@dataclass(frozen=True)
class HistoryStep:
    """One version of a slice: what came and went since the one before that is still there (None for the first)."""

    slice: Slice
    tags: list[str]
    added: int | None = None
    removed: int | None = None
    labels_changed: int | None = None
    erased: int = 0


def history(lake: Lake, name: str) -> Sequence[HistoryStep]:
    """Every version of a slice, the oldest first, the deleted ones among them. Raises BadInput for an unknown name."""
    every = [s for s in versions.list(lake, deleted=True) if s.name == name]
    if not every:
        if "@" in name:
            raise BadInput(f"the history is a whole slice's: give its name without @, not {name!r}")
        raise unknown("slice", name, (s.name for s in versions.list(lake)))
    known = versions.tags(lake)
    steps, before = list[HistoryStep](), None
    for made in sorted(every, key=lambda s: s.version):
        named = [tag for (slice, tag), version in known.items() if (slice, version) == (name, made.version)]
        if made.deleted_at is not None:
            steps.append(HistoryStep(made, named))
            continue
        erased = erased_count(lake, made)
        if before is None:
            steps.append(HistoryStep(made, named, erased=erased))
        else:
            found = diff(lake, before, made)
            changed = None if found.labels_changed is None else len(found.labels_changed)
            steps.append(HistoryStep(made, named, len(found.added), len(found.removed), changed, erased))
        before = made
    return steps


def _labels_of(contents: pa.Table) -> dict[str, list[str] | None]:
    return dict(zip(contents["image_id"].to_pylist(), contents["label_events"].to_pylist(), strict=True))


def _changed(lake: Lake, events: dict[str, tuple[Sequence[str], Sequence[str]]]) -> list[str]:
    """Images whose two lists of labels say different things. The same thing said again is no change."""
    other = {name: pair for name, pair in events.items() if set(pair[0]) != set(pair[1])}
    wanted = sorted({event for pair in other.values() for some in pair for event in some})
    said = {}
    if wanted:
        for row in lake.look_up("labels", ["event_id", *_SAID], "event_id", wanted).to_pylist():
            said[row["event_id"]] = repr([row[key] for key in _SAID])
    return sorted(
        name
        for name, (old, new) in other.items()
        if sorted(said.get(e, e) for e in old) != sorted(said.get(e, e) for e in new)
    )


def _erased_of(lake: Lake, made: Slice) -> set[str]:
    if made.live:
        return set()
    rows = lake.look_up("slice_members", ["image_id"], "id", [made.id])
    return resolving.erased(lake, rows["image_id"].to_pylist())
