"""models: which versions a model has, which one is in production, and what becomes of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from search_app.cli.terminal import Add, columns, open_lake, output

if TYPE_CHECKING:
    from training.registry.releases import ReleaseEvent
    from training.registry.versions import Version


def register(add: Add, models: Any) -> None:
    p = add("list", _list, "models and their versions, and which one is promoted", models)
    p.add_argument("--model", metavar="NAME")
    p = add("show", _show, "a model or a version: its run, its slices, and what happened to it", models)
    p.add_argument("name", metavar="NAME[@V]|RUN")
    _change(add, models, "register", _register, "make a run the next version of its model", "RUN")
    p = _change(
        add, models, "promote", _promote, "put a version into production, if the gate lets it pass", "NAME@V|RUN"
    )
    p.add_argument("--gate", metavar="ID", help="the verdict that lets it pass (default: the newest)")
    p.add_argument("--force", action="store_true", help="against the gate, or without one; needs --reason")
    _change(add, models, "rollback", _rollback, "take back what is promoted: the version before it again", "NAME")
    _change(add, models, "shadow", _shadow, "have a version answer beside the promoted one", "NAME@V|RUN")
    _change(add, models, "retire", _retire, "take a version out of use; ends its shadow, too", "NAME@V|RUN")


def _change(
    add: Add, models: Any, name: str, run: Callable[[argparse.Namespace], int], help: str, what: str
) -> argparse.ArgumentParser:
    p = add(name, run, help, models)
    p.add_argument("name", metavar=what)
    p.add_argument("--reason", metavar="WHY", help="kept with it")
    return p


# Looking ---------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    from lake.slices.naming import unknown
    from training.registry import versions

    opened = open_lake(args)
    everything = versions.list(opened)
    found = [one for one in everything if args.model in (None, one.model)]
    if args.model is not None and not found:
        raise unknown("model", args.model, (one.model for one in everything))
    table = [[one.id, one.status, f"run {one.run}", f"{one.changed_at:%Y-%m-%d %H:%M} UTC", _why(one)] for one in found]
    none = "no models yet; make a run one with: lakeloop models register RUN"
    return output(args, [_facts(one) for one in found], columns(table, 5) if table else none)


def _show(args: argparse.Namespace) -> int:
    from lake.sql import tables
    from training.registry import releases, runs, versions

    opened = open_lake(args)
    everything = versions.list(opened)
    of_model = [one for one in everything if one.model == args.name]
    found = of_model or [versions.get(opened, args.name)]
    log = [one for one in releases.history(opened, found[0].model) if of_model or one.version == found[0].version]
    facts, lines = [], []
    for one in found:
        run = runs.get(opened, one.run)
        slices = [{"id": said["id"], "use": said["use"]} for said in run.data.get("slices", [])]
        facts.append(_facts(one) | {"task": run.task, "kind": run.kind, "parent": run.parent, "slices": slices})
        lines.append(f"{one.id} is {one.status}: run {one.run}, {run.task}, {run.kind}{_after(run.parent)}{_why(one)}")
        lines += [f"  {said['use']:<10} {said['id']}" for said in slices]
    lines += ["", *(_line(one) for one in log)]
    told = [tables.plain(vars(one)) for one in log]
    return output(args, {"model": found[0].model, "versions": facts, "history": told}, "\n".join(lines))


# Changing --------------------------------------------------------------------------------------------------


def _register(args: argparse.Namespace) -> int:
    from training.registry import promotion

    opened = open_lake(args)
    return _done(args, opened, "register", promotion.register(opened, args.name, args.reason))


def _promote(args: argparse.Namespace) -> int:
    from training.registry import promotion

    opened = open_lake(args)
    made = promotion.promote(opened, args.name, gate=args.gate, reason=args.reason, force=args.force)
    return _done(args, opened, "promote", made, force=args.force, gate=made.gate)


def _rollback(args: argparse.Namespace) -> int:
    from training.registry import promotion, releases

    opened = open_lake(args)
    made = promotion.rollback(opened, args.name, args.reason)
    gone = [one for one in releases.history(opened, args.name) if one.action == "rolled_back"][-1]
    return _done(args, opened, "rollback", made, taken_back=f"{gone.model}@{gone.version}")


def _shadow(args: argparse.Namespace) -> int:
    from training.registry import promotion

    opened = open_lake(args)
    return _done(args, opened, "shadow", promotion.shadow(opened, args.name, args.reason))


def _retire(args: argparse.Namespace) -> int:
    from training.registry import promotion

    opened = open_lake(args)
    return _done(args, opened, "retire", promotion.retire(opened, args.name, args.reason))


def _done(args: argparse.Namespace, opened: Any, action: str, made: Version, **detail: Any) -> int:
    from lake.access import audit

    audit.record(opened, f"models {action}", made.id, detail={"run": made.run, "reason": args.reason} | detail)
    return output(args, _facts(made), f"{made.id} is {made.status}: run {made.run}{_why(made)}")


# ----------------------------------------------------------------------------------------------------------


def _facts(one: Version) -> dict[str, Any]:
    from lake.sql import tables

    facts: dict[str, Any] = tables.plain(vars(one))
    return {"id": one.id, **facts}


def _why(one: Version | ReleaseEvent) -> str:
    return (f"  gate {one.gate}" if one.gate else "") + (f"  ({one.reason})" if one.reason else "")


def _after(parent: str | None) -> str:
    return f", from run {parent}" if parent else ""


def _line(one: ReleaseEvent) -> str:
    return f"{one.timestamp:%Y-%m-%d %H:%M:%S} UTC  {one.model}@{one.version} {one.action.replace('_', ' ')}{_why(one)}"
