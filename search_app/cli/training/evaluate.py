"""evaluate, gate, forgetting: metrics of a run on every slice, and whether it may replace another run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_app.cli.foreground import add_detach, run_job
from search_app.cli.terminal import Add, columns, open_lake, output

if TYPE_CHECKING:
    from collections.abc import Callable

    from lake.jobs.live_state import Progress
    from training.evaluation.gate import SliceVerdict
    from training.metrics.bootstrap import Estimate

# Most image ids in the text output; --json has all.
SHOWN = 10


def register(add: Add) -> None:
    p = add("evaluate", _evaluate, "evaluate a run on every evaluation and regression slice", writes=True)
    p.add_argument("of_run", metavar="RUN")
    p.add_argument("--slice", action="append", default=[], metavar="NAME[@V]", help="also this slice; repeat for more")
    p.add_argument("--only", action="store_true", help="only the slices of --slice")
    p.add_argument("--against", metavar="RUN", help="show images newly wrong and newly right compared with this run")
    p.add_argument("--policy", metavar="FILE", help="a gate policy, for its cost matrix")
    add_detach(p)

    p = add(
        "gate",
        _gate,
        "check that a candidate is not worse on any slice; exit code 1 if it must not replace the baseline",
        writes=True,
    )
    p.add_argument("--candidate", metavar="RUN", required=True)
    p.add_argument("--baseline", metavar="RUN", help="default: the promoted version, else the run it started from")
    p.add_argument("--policy", metavar="FILE", help="margins, metrics, protected slices: TOML or JSON (docs/gate.md)")
    p.add_argument(
        "--slice", action="append", default=[], metavar="NAME", help="also check this slice; repeat for more"
    )
    add_detach(p)

    p = add(
        "forgetting", _forgetting, "show forgetting per slice: the best metric of earlier runs minus the current one"
    )
    p.add_argument("model", metavar="MODEL")
    p.add_argument("--metric", metavar="NAME")


def _evaluate(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from training.evaluation import comparison, gate_policy

    lake = open_lake(args)
    costs = gate_policy.load(Path(args.policy)).costs if args.policy else None
    arguments = {"run": args.of_run, "slices": args.slice, "only": args.only, "costs": costs}
    evaluation = run_job(args, lake, "evaluate", arguments, _progress())
    if evaluation is None:
        return 0
    names = list(dict.fromkeys(name for result in evaluation.slices for name in result.metrics))
    table = [["slice", "role", "images", *names]]
    for result in evaluation.slices:
        table.append(
            [result.slice, result.role or "-", f"{result.labelled:,}", *(_interval(result.metrics[n]) for n in names)]
        )
    lines = [
        columns(table, 2),
        f"evaluation {evaluation.id} of run {evaluation.run}; {evaluation.predicted:,} images predicted now",
    ]
    for result in evaluation.slices:
        if result.incomplete:
            lines.append(f"{result.slice}: {result.incomplete:,} images with an incomplete label do not count")
        if result.not_predicted:
            lines.append(f"{result.slice}: {result.not_predicted:,} labelled images could not be given to the model")
    facts: dict[str, Any] = asdict(evaluation)
    if args.against:
        changes = comparison.compare(lake, args.against, evaluation.run, args.slice)
        facts["against"] = [asdict(result) for result in changes]
        for change in changes:
            lines += ["", f"{change.slice}: {change.metric} {_interval(change.old)} -> {_interval(change.new)}"]
            lines += _image_lines("newly wrong", change.newly_wrong) + _image_lines("newly right", change.newly_right)
    return output(args, facts, "\n".join(lines))


def _gate(args: argparse.Namespace) -> int:
    import json

    from training.evaluation import gate_policy

    lake = open_lake(args)
    policy = gate_policy.load(Path(args.policy)) if args.policy else gate_policy.GatePolicy()
    runs = {"candidate": args.candidate, "baseline": args.baseline}
    decision = run_job(args, lake, "gate", {**runs, "policy": json.loads(policy.with_slices(args.slice).json())})
    if decision is None:
        return 0
    lines = []
    for verdict in decision.slices:
        lines.append(("BLOCKS  " if verdict.blocks else "        ") + verdict.sentence + _standing(verdict))
        if verdict.blocks:
            lines += [f"          {line}" for line in _image_lines("newly wrong", verdict.newly_wrong)]
    conclusion = "must not replace" if decision.blocks else "may replace"
    lines.append(
        f"gate {decision.id}: {decision.outcome}; run {decision.candidate} {conclusion} run {decision.baseline}"
    )
    output(args, decision.facts(), "\n".join(lines))
    return int(decision.blocks)


def _forgetting(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from training.evaluation import comparison

    table_ = comparison.forgetting(open_lake(args), args.model, args.metric)
    rows = [["slice", *table_.runs, "forgotten"]]
    for slice_, values in table_.values.items():
        lost = table_.forgotten[slice_]
        rows.append(
            [slice_, *("-" if v is None else f"{v:.3f}" for v in values), "-" if lost is None else f"{lost:.3f}"]
        )
    return output(args, asdict(table_), f"{table_.metric} of {table_.model}\n" + columns(rows, 1))


def _standing(verdict: SliceVerdict) -> str:
    return {"protected": "  [protected]", "watched": "  [watched]"}.get(verdict.standing, "")


def _image_lines(change: str, image_ids: list[str]) -> list[str]:
    lines = [f"{change}  {image_id}" for image_id in image_ids[:SHOWN]]
    rest = len(image_ids) - SHOWN
    return lines + ([f"{change}  and {rest:,} more, see --json"] if rest > 0 else [])


def _interval(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "-"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _progress() -> Callable[[Progress], None]:
    def show(progress: Progress) -> None:
        end = "\n" if progress.done == progress.total else ""
        print(f"\r{progress.done:,} of {progress.total:,} images predicted", end=end, file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else lambda progress: None
