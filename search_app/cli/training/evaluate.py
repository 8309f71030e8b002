"""evaluate, gate, forgetting: how good a run's model is on every slice, and whether it may replace another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_app.cli.terminal import Add, columns, open_lake, output

if TYPE_CHECKING:
    from training.evaluation.gate import SliceVerdict
    from training.metrics.bootstrap import Estimate

# Images that are named on the screen; all of them are in --json.
SHOWN = 10


def register(add: Add) -> None:
    p = add("evaluate", _evaluate, "a run's answers and metrics on every evaluation and regression slice")
    p.add_argument("of_run", metavar="RUN")
    p.add_argument("--slice", action="append", default=[], metavar="NAME[@V]", help="this one, too; again for more")
    p.add_argument("--only", action="store_true", help="only the slices named")
    p.add_argument("--against", metavar="RUN", help="show what became newly wrong and newly right since this run")
    p.add_argument("--policy", metavar="FILE", help="a gate policy, for its cost matrix")

    p = add("gate", _gate, "has the candidate fallen on any slice? exit 1 when it must not replace the baseline")
    p.add_argument("--candidate", metavar="RUN", required=True)
    p.add_argument("--baseline", metavar="RUN", help="by default what is promoted, else the run it began from")
    p.add_argument("--policy", metavar="FILE", help="margins, metrics, protected slices: TOML or JSON (docs/gate.md)")
    p.add_argument("--slice", action="append", default=[], metavar="NAME", help="judge this slice, too; again for more")

    p = add("forgetting", _forgetting, "slices by runs of a model: the best so far less now")
    p.add_argument("model", metavar="MODEL")
    p.add_argument("--metric", metavar="NAME")


def _evaluate(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from lake.access import audit
    from training.evaluation import comparison, evaluate, gate_policy

    opened = open_lake(args)
    costs = gate_policy.load(Path(args.policy)).costs if args.policy else None
    found = evaluate.evaluate(opened, args.of_run, args.slice, costs=costs, only=args.only, progress=_progress())
    audit.record(opened, "evaluate", found.run, detail={"slices": [one.slice for one in found.slices]})
    names = list(dict.fromkeys(name for one in found.slices for name in one.metrics))
    table = [["slice", "role", "images", *names]]
    for one in found.slices:
        table.append([one.slice, one.role or "-", f"{one.labelled:,}", *(_interval(one.metrics[n]) for n in names)])
    lines = [columns(table, 2), f"evaluation {found.id} of run {found.run}; {found.answered:,} images answered now"]
    for one in found.slices:
        if one.unanswered:
            lines.append(f"{one.slice}: {one.unanswered:,} labelled images could not be shown to the model")
    facts: dict[str, Any] = asdict(found)
    if args.against:
        changes = comparison.compare(opened, args.against, found.run, args.slice)
        facts["against"] = [asdict(one) for one in changes]
        for change in changes:
            lines += ["", f"{change.slice}: {change.metric} {_interval(change.old)} -> {_interval(change.new)}"]
            lines += _named("newly wrong", change.newly_wrong) + _named("newly right", change.newly_right)
    return output(args, facts, "\n".join(lines))


def _gate(args: argparse.Namespace) -> int:
    from lake.access import audit
    from training.evaluation import gate, gate_policy

    opened = open_lake(args)
    asked = gate_policy.load(Path(args.policy)) if args.policy else gate_policy.Policy()
    found = gate.gate(opened, args.candidate, args.baseline, asked.with_slices(args.slice))
    detail = {"gate": found.id, "baseline": found.baseline, "outcome": found.outcome, "blocks": found.blocks}
    audit.record(opened, "gate", found.candidate, detail=detail)
    lines = []
    for one in found.slices:
        lines.append(("BLOCKS  " if one.blocks else "        ") + one.sentence + _standing(one))
        if one.blocks:
            lines += [f"          {line}" for line in _named("newly wrong", one.newly_wrong)]
    end = "must not replace" if found.blocks else "may replace"
    lines.append(f"gate {found.id}: {found.outcome}; run {found.candidate} {end} run {found.baseline}")
    output(args, found.facts(), "\n".join(lines))
    return int(found.blocks)


def _forgetting(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from training.evaluation import comparison

    found = comparison.forgetting(open_lake(args), args.model, args.metric)
    table = [["slice", *found.runs, "forgotten"]]
    for slice, values in found.values.items():
        lost = found.forgotten[slice]
        table.append(
            [slice, *("-" if v is None else f"{v:.3f}" for v in values), "-" if lost is None else f"{lost:.3f}"]
        )
    return output(args, asdict(found), f"{found.metric} of {found.model}\n" + columns(table, 1))


def _standing(one: SliceVerdict) -> str:
    return {"protected": "  [protected]", "watched": "  [watched]"}.get(one.standing, "")


def _named(what: str, image_ids: list[str]) -> list[str]:
    lines = [f"{what}  {one}" for one in image_ids[:SHOWN]]
    rest = len(image_ids) - SHOWN
    return lines + ([f"{what}  and {rest:,} more, see --json"] if rest > 0 else [])


def _interval(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "-"
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _progress() -> Any:
    def say(done: int, every: int) -> None:
        end = "\n" if done == every else ""
        print(f"\r{done:,} of {every:,} images answered", end=end, file=sys.stderr, flush=True)

    return say if sys.stderr.isatty() else None
