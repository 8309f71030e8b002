"""Differences between two slices or versions, and the history of a slice."""

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

_CONTENT = ("task", "label", "boxes", "masks", "crowd_boxes", "crowd_masks", "incomplete")


@dataclass(frozen=True)
class SliceDifference:
    """From one slice to another. Each list has image_ids, sorted, without erased images.

    `labels_changed`: images in both whose labels differ; None if one slice was made before labels were frozen. `kept`:
    how many images are in both. `erased`: how many distinct images of either were erased.
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
    """The exact difference of `after` from `before`."""
    left, right = _labels_of(resolving.contents(lake, before)), _labels_of(resolving.contents(lake, after))
    shared = left.keys() & right.keys()
    changed: list[str] | None = None
    if not any(events is None for part in (left, right) for events in part.values()):
        changed = _changed(lake, {name: (left[name] or (), right[name] or ()) for name in shared})
    erased = set().union(*(_erased_of(lake, slice_) for slice_ in (before, after)))
    return SliceDifference(
        before.id,
        after.id,
        sorted(right.keys() - left.keys()),
        sorted(left.keys() - right.keys()),
        changed,
        len(shared),
        len(erased),
    )


def erased_count(lake: Lake, slice_: Slice) -> int:
    """How many of its images were erased since it was frozen."""
    return len(_erased_of(lake, slice_))


@dataclass(frozen=True)
class HistoryStep:
    """A version of a slice, with its changes from the previous version that is not deleted (None for the first)."""

    slice: Slice
    tags: list[str]
    added: int | None = None
    removed: int | None = None
    labels_changed: int | None = None
    erased: int = 0


def history(lake: Lake, name: str) -> Sequence[HistoryStep]:
    """Every version of a slice, oldest first, with deleted ones. Raises BadInput for an unknown name."""
    all_versions = [s for s in versions.list(lake, deleted=True) if s.name == name]
    if not all_versions:
        if "@" in name:
            raise BadInput(f"a history covers all versions of a slice: give its name without @, not {name!r}")
        raise unknown("slice", name, (s.name for s in versions.list(lake)))
    tag_versions = versions.tags(lake)
    steps, before = list[HistoryStep](), None
    for slice_ in sorted(all_versions, key=lambda s: s.version):
        tags = [tag for (slice, tag), version in tag_versions.items() if (slice, version) == (name, slice_.version)]
        if slice_.deleted_at is not None:
            steps.append(HistoryStep(slice_, tags))
            continue
        erased = erased_count(lake, slice_)
        if before is None:
            steps.append(HistoryStep(slice_, tags, erased=erased))
        else:
            difference = diff(lake, before, slice_)
            changed = None if difference.labels_changed is None else len(difference.labels_changed)
            steps.append(HistoryStep(slice_, tags, len(difference.added), len(difference.removed), changed, erased))
        before = slice_
    return steps


def _labels_of(contents: pa.Table) -> dict[str, list[str] | None]:
    return dict(zip(contents["image_id"].to_pylist(), contents["label_events"].to_pylist(), strict=True))


def _changed(lake: Lake, events: dict[str, tuple[Sequence[str], Sequence[str]]]) -> list[str]:
    """Images whose labels differ in content; equal labels with other event ids are no change."""
    candidates = {name: pair for name, pair in events.items() if set(pair[0]) != set(pair[1])}
    event_ids = sorted({event for pair in candidates.values() for events in pair for event in events})
    statements = {}
    if event_ids:
        for row in lake.look_up("labels", ["event_id", *_CONTENT], "event_id", event_ids).to_pylist():
            row["incomplete"] = bool(row["incomplete"])
            statements[row["event_id"]] = repr([row[key] for key in _CONTENT])
    return sorted(
        name
        for name, (old, new) in candidates.items()
        if sorted(statements.get(e, e) for e in old) != sorted(statements.get(e, e) for e in new)
    )


def _erased_of(lake: Lake, slice_: Slice) -> set[str]:
    if slice_.live:
        return set()
    rows = lake.look_up("slice_members", ["image_id"], "id", [slice_.id])
    return resolving.erased(lake, rows["image_id"].to_pylist())
