"""The registry: which run is which version of a model, which version is promoted, and what may become of it.

A version is registered, then promoted when the gate lets it pass, taken back, run as a shadow, or retired. It loads no
weights and judges nothing: it reads the verdicts that `gate.py` wrote. What happened is kept by `releases.py`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, LakeBusy
from lake.slices.naming import unknown
from lake.storage.store import literal
from training.registry import releases, runs
from training.registry.releases import Entry as Entry
from training.registry.releases import Version as Version

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.registry.runs import Run

# Reading -----------------------------------------------------------------------------------------------------------


def versions(lake: Lake, model: str | None = None) -> list[Version]:
    """All versions, by model and number; only those of a model when given, none when there is no such model."""
    entries = sorted(releases.history(lake, model), key=lambda one: one.model)
    return [found for _, mine in groupby(entries, lambda one: one.model) for found in releases.versions([*mine])]


def history(lake: Lake, model: str) -> list[Entry]:
    """What happened to a model's versions, in order."""
    return releases.history(lake, model)


def get(lake: Lake, name: str) -> Version:
    """The version NAME@V, or the one that a run (its id, or the beginning of it) is. Raises BadInput, naming the
    nearest.
    """
    found = _meant(lake, name)
    if isinstance(found, Version):
        return found
    raise BadInput(f"run {found.id} is no version of model {found.model} yet: lakeloop models register {found.id}")


def promoted(lake: Lake, model: str) -> Version | None:
    """The version in production; None when none is promoted."""
    return next((one for one in versions(lake, model) if one.status == "promoted"), None)


def standing(lake: Lake, model: str) -> list[Version]:
    """The versions that were promoted and neither taken back nor retired: the one in production last, before it those
    that a rollback goes to.
    """
    entries = releases.history(lake, model)
    by_number = {one.version: one for one in releases.versions(entries)}
    return [by_number[number] for number in releases.standing(entries)]


def shadows(lake: Lake, model: str) -> list[Version]:
    """The versions that answer beside the one in production, by number."""
    return [one for one in versions(lake, model) if one.status == "shadow"]


# Writing -----------------------------------------------------------------------------------------------------------


def register(lake: Lake, run: str, reason: str | None = None) -> Version:
    """The run as the next version of its model, or the version it is already: a retired one is in use again then.

    Raises BadInput unless the run is done.
    """
    made = runs.get(lake, run)
    if made.status != "done":
        raise BadInput(f"run {made.id} is {made.status}: only a run that is done can be a version of {made.model}")

    def decide(entries: list[Entry]) -> Entry | None:
        mine = next((one for one in releases.versions(entries) if one.run == made.id), None)
        if mine is not None and mine.status != "retired":
            return None
        number = mine.version if mine else 1 + max((one.version for one in entries), default=0)
        return releases.following(entries, "registered", model=made.model, version=number, run=made.id, reason=reason)

    return _of_run(made.id, releases.write(lake, made.model, decide))


def promote(
    lake: Lake, name: str, *, gate: str | None = None, reason: str | None = None, force: bool = False
) -> Version:
    """Puts a version NAME@V, or a run (registered when it was not), into production in place of the promoted one.

    The newest verdict on it against the promoted one must not block; `gate` says which verdict is meant. A version that
    was taken back needs a verdict given since. The first version to be promoted needs none. `force` goes on without,
    and demands a reason, which is kept with the word "forced". Raises BadInput when it may not be promoted (saying
    which command helps), is promoted already, or its file is not the one its run wrote; LakeBusy when another version
    was promoted meanwhile.
    """
    if force and not (reason or "").strip():
        raise BadInput("a promotion against the gate needs a reason: give --reason")
    asked = _meant(lake, name)
    run = runs.get(lake, asked.run) if isinstance(asked, Version) else asked
    runs.model_file(lake, run)
    before = promoted(lake, run.model)
    if not isinstance(asked, Version):
        # What is refused gets no number.
        _, fault = _judged(lake, [], run.id, f"run {run.id}", before, gate)
        if fault is not None and not force:
            raise BadInput(fault)
        register(lake, run.id)

    def decide(entries: list[Entry], this: Version, present: Version | None) -> Entry:
        _same(before, present)
        if present is not None and this.version == present.version:
            raise BadInput(f"{this.id} is promoted already, since {this.changed_at:%Y-%m-%d %H:%M} UTC")
        _in_use(this)
        back = [one.timestamp for one in entries if one.version == this.version and one.action == "rolled_back"]
        verdict, fault = _judged(lake, back, this.run, this.id, present, gate)
        if fault is not None and not force:
            raise BadInput(fault)
        said = reason if fault is None else f"forced: {reason}"
        return _entry(entries, this, "promoted", gate=verdict, reason=said)

    return _change(lake, run.model, run.id, decide)


def rollback(lake: Lake, model: str, reason: str | None = None) -> Version:
    """Takes back what is promoted; the version promoted before it, which is in production again.

    Raises BadInput when there is none before it or its file is not the one its run wrote, LakeBusy when another process
    promoted, took back or retired one of the two meanwhile.
    """
    there = standing(lake, model)
    if not there:
        known = {one.model for one in versions(lake)}
        raise BadInput(f"no version of {model} is promoted") if model in known else unknown("model", model, known)
    if len(there) == 1:
        raise BadInput(f"{there[0].id} is the only version of {model} that was promoted: there is none to go back to")
    back, now = there[-2:]
    runs.model_file(lake, runs.get(lake, back.run))

    def decide(entries: list[Entry], this: Version, present: Version | None) -> Entry:
        _same(now, present)
        if releases.standing(entries)[-2:] != [back.version, now.version]:
            raise LakeBusy(f"another process was faster: {back.id} is {this.status}; see: lakeloop models show {model}")
        return _entry(entries, now, "rolled_back", reason=reason)

    return _change(lake, model, back.run, decide)


def shadow(lake: Lake, name: str, reason: str | None = None) -> Version:
    """Has a version NAME@V, or a run, answer beside the promoted one, until it is promoted or retired.

    Raises BadInput when it is promoted or retired, or its file is not the one its run wrote.
    """
    asked = _meant(lake, name)
    mine = asked if isinstance(asked, Version) else register(lake, asked.id)
    runs.model_file(lake, runs.get(lake, mine.run))

    def decide(entries: list[Entry], this: Version, present: Version | None) -> Entry | None:
        if this.status == "promoted":
            raise BadInput(f"{this.id} is promoted: a shadow is a version that answers beside it")
        _in_use(this)
        return None if this.status == "shadow" else _entry(entries, this, "shadowed", reason=reason)

    return _change(lake, mine.model, mine.run, decide)


def retire(lake: Lake, name: str, reason: str | None = None) -> Version:
    """Takes a version out of use: it is no shadow any more, is not promoted, and no rollback goes to it.

    Raises BadInput when it is promoted.
    """
    mine = get(lake, name)

    def decide(entries: list[Entry], this: Version, present: Version | None) -> Entry | None:
        if this.status == "promoted":
            way = f"promote another version, or go back with: lakeloop models rollback {this.model}"
            raise BadInput(f"{this.id} is promoted; {way}")
        return None if this.status == "retired" else _entry(entries, this, "retired", reason=reason)

    return _change(lake, mine.model, mine.run, decide)


# ------------------------------------------------------------------------------------------------------------------


def _change(
    lake: Lake, model: str, run: str, decide: Callable[[list[Entry], Version, Version | None], Entry | None]
) -> Version:
    """The run's version after what `decide` makes of the entries, that version, and the one in production."""

    def decided(entries: list[Entry]) -> Entry | None:
        now = releases.versions(entries)
        present = next((one for one in now if one.status == "promoted"), None)
        return decide(entries, next(one for one in now if one.run == run), present)

    return _of_run(run, releases.write(lake, model, decided))


def _of_run(run: str, entries: Sequence[Entry]) -> Version:
    return next(one for one in releases.versions(entries) if one.run == run)


def _entry(
    entries: Sequence[Entry], of: Version, action: str, gate: str | None = None, reason: str | None = None
) -> Entry:
    return releases.following(entries, action, model=of.model, version=of.version, run=of.run, gate=gate, reason=reason)


def _same(before: Version | None, present: Version | None) -> None:
    """Raises LakeBusy when another version is in production than the one that was looked at."""
    if (before and before.version) != (present and present.version):
        is_now = f"{present.id} is promoted now" if present else "nothing is promoted now"
        was = f"before it was {before.id}" if before else "nothing was before"
        raise LakeBusy(f"another process was faster: {is_now}, {was}. Look, and decide anew")


def _in_use(this: Version) -> None:
    if this.status == "retired":
        raise BadInput(f"{this.id} is retired; to use it again: lakeloop models register {this.run}")


def _judged(
    lake: Lake, back: Sequence[dt.datetime], run: str, name: str, present: Version | None, gate: str | None
) -> tuple[str | None, str | None]:
    """The newest verdict on a run against the version in production, and why it does not let it pass; None: it does.

    `back`: when it was taken back so far; `name`: what people call it.
    """
    against = "" if present is None else f" and baseline = {literal(present.run)}"
    rows = lake.scan("gates", ["id", "outcome", "blocks", "at"], f"candidate = {literal(run)}{against}")
    newest: dict[str, Any] | None = max(rows.to_pylist(), key=lambda row: (row["at"], row["id"]), default=None)
    if gate is not None and (newest is None or newest["id"] != gate):
        there = f"{newest['id']} is" if newest else "there is none"
        asked = f"{name} against {present.id}" if present else name
        raise BadInput(f"gate {gate!r} is not the newest verdict on {asked}: {there}")
    if present is None:
        return None if newest is None else newest["id"], None
    command = f"lakeloop gate --candidate {run} --baseline {present.run}"
    if newest is None:
        return None, f"{name} was not judged against {present.id}, which is promoted; run: {command}"
    if newest["blocks"]:
        fault = f"gate {newest['id']} keeps {name} from replacing {present.id}: {newest['outcome']}"
        return newest["id"], f"{fault}. To promote it all the same: --force --reason WHY"
    if back and back[-1] > newest["at"]:
        fault = f"{name} was taken back at {back[-1]:%Y-%m-%d %H:%M} UTC, after gate {newest['id']}"
        return newest["id"], f"{fault}; judge it again: {command}"
    return newest["id"], None


def _meant(lake: Lake, name: str) -> Version | Run:
    """The version NAME@V or of a run; the run, when it is no version yet."""
    there = versions(lake)
    for one in there:
        if name in (one.id, one.run):
            return one
    model, at, _ = name.partition("@")
    mine = [one.id for one in there if one.model == model]
    if at:
        raise unknown("version", name, mine or [one.id for one in there], f"model {model}" if mine else "the lake")
    if mine:
        raise BadInput(f"say which version of {name!r}: {mine[-1]} is its newest")
    ids = lake.scan("runs", ["id"])["id"].to_pylist()
    if not name or not any(one.startswith(name) for one in ids):
        raise unknown("version or run", name, [one.id for one in there] + ids)
    run = runs.get(lake, name)
    return next((one for one in there if one.run == run.id), run)
