"""models: lists the versions of models, and registers, promotes, rolls back, shadows and retires them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, columns, open_lake, output

if TYPE_CHECKING:
    from training.registry.releases import ReleaseEvent
    from training.registry.versions import Version


def register(add: Add, models: Any) -> None:
    p = add("list", _list, "list models with their versions and status", models)
    p.add_argument("--model", metavar="NAME")
    p = add("show", _show, "show a model or a version: run, slices and history", models)
    p.add_argument("name", metavar="NAME[@V]|RUN")
    _change(add, models, "register", _register, "register a run as the next version of its model", "RUN")
    p = _change(add, models, "promote", _promote, "promote a version to production if it passed the gate", "NAME@V|RUN")
    p.add_argument("--gate", metavar="ID", help="the gate result to use (default: the newest)")
    p.add_argument("--force", action="store_true", help="promote despite the gate, or without one; needs --reason")
    p.add_argument("--share", metavar="P%", help="as a canary: for this share of the images only, e.g. 10%%")
    p.add_argument("--limit", dest="limits", action="append", default=[], metavar="NAME=VALUE",
                   help="roll the canary back beyond this: disagreement=0.3, latency=2, errors=0.01, minimum=30; "
                   "repeat for more")  # fmt: skip
    _change(
        add, models, "rollback", _rollback, "end the canary or, without one, promote the version before again", "NAME"
    )
    _change(add, models, "shadow", _shadow, "let a version predict in the shadow of the promoted one", "NAME@V|RUN")
    _change(add, models, "retire", _retire, "retire a version; this also ends its shadow", "NAME@V|RUN")


def _change(
    add: Add, models: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, metavar: str
) -> argparse.ArgumentParser:
    p = add(name, run, help, models, writes=True)
    p.add_argument("name", metavar=metavar)
    p.add_argument("--reason", metavar="WHY", help="stored with the event")
    return p


# Look ---------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    from lake.slices.naming import unknown
    from training.registry import versions

    lake = open_lake(args)
    all_versions = versions.list(lake)
    selected = [version for version in all_versions if args.model in (None, version.model)]
    if args.model is not None and not selected:
        raise unknown("model", args.model, (version.model for version in all_versions))
    table = [
        [
            version.id,
            _standing(version),
            f"run {version.run}",
            f"{version.changed_at:%Y-%m-%d %H:%M} UTC",
            _why(version),
        ]
        for version in selected
    ]
    none = "no models yet; register a run with: lakeloop models register RUN"
    return output(args, [_facts(version) for version in selected], columns(table, 5) if table else none)


def _show(args: argparse.Namespace) -> int:
    from lake.sql import tables
    from training.inference import canary_measurements
    from training.registry import canary, releases, runs, versions

    lake = open_lake(args)
    all_versions = versions.list(lake)
    of_model = [version for version in all_versions if version.model == args.name]
    shown = of_model or [versions.get(lake, args.name)]
    events = releases.history(lake, shown[0].model)
    if not of_model:
        events = [event for event in events if event.version == shown[0].version]
    facts, lines = [], []
    for version in shown:
        run = runs.get(lake, version.run)
        slices = [{"id": slice_["id"], "use": slice_["use"]} for slice_ in run.data.get("slices", [])]
        facts.append(_facts(version) | {"task": run.task, "kind": run.kind, "parent": run.parent, "slices": slices})
        origin = f"run {version.run}, {run.task}, {run.kind}{_after(run.parent)}"
        lines.append(f"{version.id} is {_standing(version)}: {origin}{_why(version)}")
        if version.status == "canary":
            measured = canary_measurements.read(lake, version)
            facts[-1]["measured"] = measured
            lines.append(f"  rolled back beyond {canary.limits_of_json(version.limits)}")
            lines += [f"  measured by a server: {canary_measurements.sentence(facts_)}" for facts_ in measured]
        lines += [f"  {slice_['use']:<10} {slice_['id']}" for slice_ in slices]
    lines += ["", *(_event_line(event) for event in events)]
    history = [tables.plain(vars(event)) for event in events]
    return output(args, {"model": shown[0].model, "versions": facts, "history": history}, "\n".join(lines))


# Change --------------------------------------------------------------------------------------------------


def _register(args: argparse.Namespace) -> int:
    from training.registry import promotion

    lake = open_lake(args)
    return _finish(args, lake, "register", promotion.register(lake, args.name, args.reason))


def _promote(args: argparse.Namespace) -> int:
    import json

    from training.registry import canary, promotion

    lake = open_lake(args)
    share = None if args.share is None else _share(args.share)
    limits = canary.limits_of({name: value for name, value in map(_limit, args.limits)}) if args.limits else None
    version = promotion.promote(
        lake, args.name, gate=args.gate, reason=args.reason, force=args.force, share=share, limits=limits
    )
    detail = {} if share is None else {"share": share, "limits": json.loads(version.limits or "{}")}
    return _finish(args, lake, "promote", version, force=args.force, gate=version.gate, **detail)


def _rollback(args: argparse.Namespace) -> int:
    from training.registry import promotion, releases

    lake = open_lake(args)
    version = promotion.rollback(lake, args.name, args.reason)
    rolled_back = [event for event in releases.history(lake, args.name) if event.action == "rolled_back"][-1]
    return _finish(args, lake, "rollback", version, taken_back=f"{rolled_back.model}@{rolled_back.version}")


def _shadow(args: argparse.Namespace) -> int:
    from training.registry import promotion

    lake = open_lake(args)
    return _finish(args, lake, "shadow", promotion.shadow(lake, args.name, args.reason))


def _retire(args: argparse.Namespace) -> int:
    from training.registry import promotion

    lake = open_lake(args)
    return _finish(args, lake, "retire", promotion.retire(lake, args.name, args.reason))


def _finish(args: argparse.Namespace, lake: Any, action: str, version: Version, **detail: Any) -> int:
    from lake.access import audit

    audit.record(lake, f"models {action}", version.id, detail={"run": version.run, "reason": args.reason} | detail)
    return output(args, _facts(version), f"{version.id} is {_standing(version)}: run {version.run}{_why(version)}")


# ----------------------------------------------------------------------------------------------------------


def _facts(version: Version) -> dict[str, Any]:
    import json

    from lake.sql import tables

    facts: dict[str, Any] = tables.plain(vars(version))
    return {"id": version.id, **facts, "limits": json.loads(version.limits) if version.limits else None}


def _standing(version: Version) -> str:
    """`promoted`, `shadow`, ..., or `canary for 10% of the images`."""
    return version.status if version.share is None else f"canary for {100 * version.share:g}% of the images"


def _share(text: str) -> float:
    """`10%` and `0.1` are a tenth."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise BadInput(f"--share is {text!r}; write a percentage such as 10%") from None


def _limit(text: str) -> tuple[str, float | int]:
    name, _, value = text.partition("=")
    try:
        return name, int(value) if value.isdigit() else float(value)
    except ValueError:
        raise BadInput(f"--limit is {text!r}; write NAME=VALUE such as errors=0.02") from None


def _why(record: Version | ReleaseEvent) -> str:
    return (f"  gate {record.gate}" if record.gate else "") + (f"  ({record.reason})" if record.reason else "")


def _after(parent: str | None) -> str:
    return f", from run {parent}" if parent else ""


def _event_line(event: ReleaseEvent) -> str:
    action = event.action.replace("_", " ") + ("" if event.share is None else f" {100 * event.share:g}%")
    return f"{event.timestamp:%Y-%m-%d %H:%M:%S} UTC  {event.model}@{event.version} {action}{_why(event)}"
