"""Registers, promotes, rolls back, shadows and retires versions; the gate must allow a promotion or a canary.

It loads no weights and evaluates nothing: it reads the verdicts that `training/evaluation/gate.py` wrote, and appends
events to the log (`releases.py`).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, LakeBusy, NotAllowed
from lake.slices.naming import unknown
from lake.storage.store import literal
from training.registry import releases, runs, versions
from training.registry.canary import Limits
from training.registry.releases import ReleaseEvent
from training.registry.versions import Version

if TYPE_CHECKING:
    from lake.storage.store import Lake


def register(lake: Lake, run: str, reason: str | None = None) -> Version:
    """Makes a run the next version of its model. A run that is a version already stays it; if retired, it is in use
    again.

    Raises BadInput unless the run is done.
    """
    record = runs.get(lake, run)
    if record.status != "done":
        raise BadInput(
            f"run {record.id} is {record.status}: only a run that is done can be a version of {record.model}"
        )

    def decide(events: list[ReleaseEvent]) -> ReleaseEvent | None:
        version = next((version for version in versions.of_events(events) if version.run == record.id), None)
        if version is not None and version.status != "retired":
            return None
        number = version.version if version else 1 + max((event.version for event in events), default=0)
        return releases.next_event(
            events, "registered", model=record.model, version=number, run=record.id, reason=reason
        )

    return _of_run(record.id, releases.append(lake, record.model, decide))


def promote(
    lake: Lake,
    name: str,
    *,
    gate: str | None = None,
    reason: str | None = None,
    force: bool = False,
    share: float | None = None,
    limits: Limits | None = None,
) -> Version:
    """Puts a version NAME@V, or a run (registered if it is not yet), into production in place of the promoted version.

    With a `share` below 1 the version becomes a canary: it predicts that share of the images, and the server rolls it
    back when it passes `limits` (default: `Limits()`). Promoting a canary again changes its share or, without one, ends
    the comparison and gives it every image.

    The newest gate verdict on it against the promoted version must not block; `gate` says which verdict you expect. A
    version that was rolled back needs a verdict that is newer than the rollback. The first promotion of a model needs
    none. `force` promotes in spite of the verdict; it requires a reason, which is recorded as "forced: ...".
    Raises BadInput if the promotion is not allowed (with the command that helps), if the version is promoted already,
    if another version is a canary, if there is no promoted version for a canary to be compared with, or if its file is
    not the one its run wrote; LakeBusy if another version was promoted meanwhile.
    """
    if share is not None and not 0 < share < 1:
        raise BadInput(f"the share is {share:g}; it must be between 0 and 1. For every image, promote without a share")
    if limits is not None and share is None:
        raise BadInput("limits are those of a canary: give a share, too")
    if force and not (reason or "").strip():
        raise BadInput("a promotion against the gate needs a reason: give --reason")
    match = versions.find(lake, name)
    run = runs.get(lake, match.run) if isinstance(match, Version) else match
    runs.model_file(lake, run)
    expected = versions.promoted(lake, run.model)
    if share is not None and expected is None:
        raise BadInput(f"no version of {run.model} is promoted to compare a canary with: promote one without a share")
    if not isinstance(match, Version):
        # A refused run must not get a version number, so all is checked before it is registered.
        _check_no_other_canary(versions.list(lake, run.model), run.id)
        _, objection = _gate_check(lake, [], run.id, f"run {run.id}", expected, gate)
        if objection is not None and not force:
            raise NotAllowed(objection)
        register(lake, run.id)

    def decide(events: list[ReleaseEvent], version: Version, current: Version | None) -> ReleaseEvent:
        _check_unchanged(expected, current)
        if current is not None and version.version == current.version:
            raise BadInput(f"{version.id} is promoted already, since {version.changed_at:%Y-%m-%d %H:%M} UTC")
        _check_not_retired(version)
        _check_no_other_canary(versions.of_events(events), version.run)
        rollbacks = [e.timestamp for e in events if e.version == version.version and e.action == "rolled_back"]
        verdict, objection = _gate_check(lake, rollbacks, version.run, version.id, current, gate)
        if objection is not None and not force:
            raise NotAllowed(objection)
        recorded = reason if objection is None else f"forced: {reason}"
        if share is None:
            return _event(events, version, "promoted", gate=verdict, reason=recorded)
        set_limits = (limits or Limits()).as_json()
        return _event(events, version, "canary", gate=verdict, reason=recorded, share=share, limits=set_limits)

    return _change(lake, run.model, run.id, decide)


def rollback(lake: Lake, model: str, reason: str | None = None) -> Version:
    """Takes the newest step into production back. Returns the version that is now in production alone.

    If there is a canary, it is taken out and the promoted version stays. Otherwise the promoted version is taken out,
    and the version promoted before it is in production again. Raises BadInput if there is none before it or if its file
    is not the one its run wrote; LakeBusy if another process promoted, rolled back or retired one of the two meanwhile.
    """
    running = versions.canary(lake, model)
    if running is not None:
        version = end_canary(lake, running, reason)
        if version is None:  # what is the newest step now is not what the caller saw
            raise LakeBusy(f"another process was faster: {running.id} changed; see: lakeloop models show {model}")
        return version
    stack = versions.promotion_stack(lake, model)
    if not stack:
        known = {version.model for version in versions.list(lake)}
        raise BadInput(f"no version of {model} is promoted") if model in known else unknown("model", model, known)
    if len(stack) == 1:
        raise BadInput(f"{stack[0].id} is the only promoted version of {model}: there is none to roll back to")
    previous, promoted = stack[-2:]
    runs.model_file(lake, runs.get(lake, previous.run))

    def decide(events: list[ReleaseEvent], version: Version, current: Version | None) -> ReleaseEvent:
        _check_unchanged(promoted, current)
        _check_no_other_canary(versions.of_events(events), promoted.run)
        if versions.promoted_numbers(events)[-2:] != [previous.version, promoted.version]:
            raise LakeBusy(
                f"another process was faster: {previous.id} is {version.status}; see: lakeloop models show {model}"
            )
        return _event(events, promoted, "rolled_back", reason=reason)

    return _change(lake, model, previous.run, decide)


def end_canary(lake: Lake, canary: Version, reason: str | None = None) -> Version | None:
    """Takes a canary out of production and returns the promoted version, which predicts every image again.

    Returns None, and changes nothing, if it is not that canary any more: rolled back, promoted, or with another share.
    """
    ended = False

    def decide(events: list[ReleaseEvent]) -> ReleaseEvent | None:
        nonlocal ended
        ended = canary in versions.of_events(events)
        return _event(events, canary, "rolled_back", reason=reason) if ended else None

    known = versions.of_events(releases.append(lake, canary.model, decide))
    return next(version for version in known if version.status == "promoted") if ended else None


def shadow(lake: Lake, name: str, reason: str | None = None) -> Version:
    """Runs a version NAME@V, or a run, in shadow mode beside the promoted version, until it is promoted or retired. A
    canary that becomes a shadow predicts no image for callers any more.

    Raises BadInput if it is promoted or retired, or if its file is not the one its run wrote.
    """
    match = versions.find(lake, name)
    shadowed = match if isinstance(match, Version) else register(lake, match.id)
    runs.model_file(lake, runs.get(lake, shadowed.run))

    def decide(events: list[ReleaseEvent], version: Version, current: Version | None) -> ReleaseEvent | None:
        if version.status == "promoted":
            raise BadInput(f"{version.id} is promoted: only a version that is not in production can be a shadow")
        _check_not_retired(version)
        return None if version.status == "shadow" else _event(events, version, "shadowed", reason=reason)

    return _change(lake, shadowed.model, shadowed.run, decide)


def retire(lake: Lake, name: str, reason: str | None = None) -> Version:
    """Takes a version out of use: it is no longer a shadow, cannot be promoted, and no rollback goes to it.

    Raises BadInput if it is promoted.
    """
    retired = versions.get(lake, name)

    def decide(events: list[ReleaseEvent], version: Version, current: Version | None) -> ReleaseEvent | None:
        if version.status == "promoted":
            remedy = f"promote another version, or roll back with: lakeloop models rollback {version.model}"
            raise BadInput(f"{version.id} is promoted; {remedy}")
        return None if version.status == "retired" else _event(events, version, "retired", reason=reason)

    return _change(lake, retired.model, retired.run, decide)


# ------------------------------------------------------------------------------------------------------------------


def _change(
    lake: Lake,
    model: str,
    run: str,
    decide: Callable[[list[ReleaseEvent], Version, Version | None], ReleaseEvent | None],
) -> Version:
    """Appends what `decide` returns for the events, the run's version and the version in production."""

    def decide_from_events(events: list[ReleaseEvent]) -> ReleaseEvent | None:
        known = versions.of_events(events)
        current = next((version for version in known if version.status == "promoted"), None)
        return decide(events, next(version for version in known if version.run == run), current)

    return _of_run(run, releases.append(lake, model, decide_from_events))


def _of_run(run: str, events: Sequence[ReleaseEvent]) -> Version:
    return next(version for version in versions.of_events(events) if version.run == run)


def _event(events: Sequence[ReleaseEvent], of: Version, action: str, **facts: Any) -> ReleaseEvent:
    return releases.next_event(events, action, model=of.model, version=of.version, run=of.run, **facts)


def _check_unchanged(expected: Version | None, current: Version | None) -> None:
    """Raises LakeBusy if the version in production is no longer the expected one."""
    if (expected and expected.version) != (current and current.version):
        is_now = f"{current.id} is promoted now" if current else "nothing is promoted now"
        was = f"before it was {expected.id}" if expected else "nothing was before"
        raise LakeBusy(f"another process was faster: {is_now}, {was}. Check the versions and decide again")


def _check_no_other_canary(known: Sequence[Version], run: str) -> None:
    """Raises BadInput if another run's version is a canary: it is compared with the version that is promoted now."""
    other = next((version for version in known if version.status == "canary" and version.run != run), None)
    if other is not None:
        remedy = f"promote it, or take it out with: lakeloop models rollback {other.model}"
        raise BadInput(f"{other.id} is a canary for {100 * (other.share or 0):g}% of the images; {remedy}")


def _check_not_retired(version: Version) -> None:
    if version.status == "retired":
        raise BadInput(f"{version.id} is retired; to use it again: lakeloop models register {version.run}")


def _gate_check(
    lake: Lake, rollbacks: Sequence[dt.datetime], run: str, name: str, current: Version | None, gate: str | None
) -> tuple[str | None, str | None]:
    """The newest verdict on a run against the version in production, and why it forbids the promotion (None: allowed).

    `rollbacks`: when the version was rolled back so far; `name`: what messages call it.
    """
    against = "" if current is None else f" and baseline = {literal(current.run)}"
    rows = lake.scan("gates", ["id", "outcome", "blocks", "at"], f"candidate = {literal(run)}{against}")
    newest: dict[str, Any] | None = max(rows.to_pylist(), key=lambda row: (row["at"], row["id"]), default=None)
    if gate is not None and (newest is None or newest["id"] != gate):
        actual = f"{newest['id']} is" if newest else "there is none"
        subject = f"{name} against {current.id}" if current else name
        raise BadInput(f"gate {gate!r} is not the newest verdict on {subject}: {actual}")
    if current is None:
        return None if newest is None else newest["id"], None
    command = f"lakeloop gate --candidate {run} --baseline {current.run}"
    if newest is None:
        return None, f"{name} has no gate verdict against {current.id}, which is promoted; run: {command}"
    if newest["blocks"]:
        objection = f"gate {newest['id']} blocks {name} from replacing {current.id}: {newest['outcome']}"
        return newest["id"], f"{objection}. To promote it anyway: --force --reason WHY"
    if rollbacks and rollbacks[-1] > newest["at"]:
        objection = f"{name} was rolled back at {rollbacks[-1]:%Y-%m-%d %H:%M} UTC, after gate {newest['id']}"
        return newest["id"], f"{objection}; evaluate it again: {command}"
    return newest["id"], None
