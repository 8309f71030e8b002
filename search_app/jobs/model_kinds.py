"""The jobs train, tune, evaluate and gate, with the functions of `training`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake import slices
from lake.errors import BadInput
from lake.jobs.running_job import Work
from lake.slices.naming import check_name
from training.evaluation import evaluate as evaluation
from training.evaluation import gate_policy
from training.registry import runs
from training.registry.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from lake.storage.store import Lake
    from training.evaluation.evaluate import Evaluation
    from training.evaluation.gate import GateVerdict
    from training.fit.tuning import TuningResult
    from training.registry.runs import Run

Arguments = Mapping[str, Any]
SPLITS = ("train", "replay", "validation", "test")
_MACHINE = ("device", "workers", "tensorboard")


def train_check(lake: Lake, arguments: Arguments) -> None:
    from training.models import trained_model

    if "resume" in arguments:
        own = sorted(set(arguments) - {"resume", *_MACHINE})
        if own:
            raise BadInput("--resume continues a run with its own slices and settings: give none, or train a new run")
        runs.get(lake, arguments["resume"])
        return
    check_name(arguments.get("name", "model"), "model")
    _recipe(arguments)
    _check_slices(lake, arguments)
    if "parent" in arguments:
        trained_model.find(lake, arguments["parent"])


def train(lake: Lake, arguments: Arguments, work: Work) -> Run:
    from training.fit import train_model
    from training.fit.distributed import Processes

    with Processes(arguments.get("device", "auto")) as processes:
        begun: Run | None = None
        if processes.first:
            earlier = work.made.get("run") or arguments.get("resume")
            begun = runs.get(lake, earlier) if earlier else _begin(lake, arguments, work)
            if "run" not in work.made:
                work.note(run=begun.id)
        run = runs.get(lake, processes.broadcast(begun.id if begun else None))
        if "run" in work.made and run.status == "done" and "resume" not in arguments:
            return run  # the last attempt died between its end and the record of it
        options: dict[str, Any] = {"workers": arguments.get("workers")}
        if "tensorboard" in arguments:
            options["tensorboard"] = Path(arguments["tensorboard"])
        try:
            return train_model.go_on(lake, run, processes=processes, progress=_steps(work), **options)
        except KeyboardInterrupt:
            if processes.first and runs.get(lake, run.id).status == "running":  # the fit of a probe does not record it
                runs.end(lake, run, "stopped")
            raise


def _begin(lake: Lake, arguments: Arguments, work: Work) -> Run:
    from training.fit import train_model

    run = train_model.begin(
        lake,
        train=arguments.get("train", ()),
        replay=arguments.get("replay", ()),
        validation=arguments.get("validation", ()),
        test=arguments.get("test", ()),
        recipe=_recipe(arguments),
        name=arguments.get("name", "model"),
        parent=arguments.get("parent"),
        weights=Path(arguments["weights"]) if "weights" in arguments else None,
        trust_sha256=arguments.get("trust_sha256"),
    )
    detail = {name: arguments.get(name, []) for name in ("train", "replay")}
    work.audit("train", run.id, {"model": run.model, **detail})
    return run


def train_result(run: Run) -> dict[str, Any]:
    return {"run": run.id, "model": run.model, "status": run.status}


def tune_check(lake: Lake, arguments: Arguments) -> None:
    from training.fit import tuning

    check_name(arguments.get("search", "search"), "search")
    check_name(arguments.get("name", "model"), "model")
    _recipe(arguments)
    _check_slices(lake, arguments)
    tuning.space(arguments.get("tried", ()), arguments.get("architectures", ()))


def tune(lake: Lake, arguments: Arguments, work: Work) -> TuningResult:
    from training.fit import tuning

    return tuning.tune(
        lake,
        arguments.get("search", "search"),
        recipe=_recipe(arguments),
        tried=tuning.space(arguments.get("tried", ()), arguments.get("architectures", ())),
        trials=arguments.get("trials", 20),
        train=arguments.get("train", ()),
        replay=arguments.get("replay", ()),
        validation=arguments.get("validation", ()),
        test=arguments.get("test", ()),
        model=arguments.get("name", "model"),
        weights=Path(arguments["weights"]) if "weights" in arguments else None,
        device=arguments.get("device", "auto"),
        workers=arguments.get("workers"),
        progress=_steps(work),
    )


def tune_result(result: TuningResult) -> dict[str, Any]:
    return result.as_dict()


def evaluate_check(lake: Lake, arguments: Arguments) -> None:
    runs.get(lake, arguments["run"])
    evaluation.slices_of(lake, arguments.get("slices", ()), only=arguments.get("only", False))
    gate_policy.of({"costs": arguments.get("costs", {})})


def evaluate(lake: Lake, arguments: Arguments, work: Work) -> Evaluation:
    costs = gate_policy.of({"costs": arguments["costs"]}).costs if "costs" in arguments else None
    names, only = arguments.get("slices", ()), arguments.get("only", False)
    made = evaluation.evaluate(lake, arguments["run"], names, costs=costs, only=only, progress=_images(work))
    work.audit("evaluate", made.run, {"slices": [result.slice for result in made.slices]})
    return made


def evaluate_result(made: Evaluation) -> dict[str, Any]:
    return {"evaluation": made.id, "run": made.run, "slices": [asdict(result) for result in made.slices]}


def gate_check(lake: Lake, arguments: Arguments) -> None:
    runs.get(lake, arguments["candidate"])
    if "baseline" in arguments:
        runs.get(lake, arguments["baseline"])
    evaluation.slices_of(lake, gate_policy.of(arguments.get("policy", {})).named())


def gate(lake: Lake, arguments: Arguments, work: Work) -> GateVerdict:
    from training.evaluation import gate as gates

    policy = gate_policy.of(arguments.get("policy", {}))
    run, baseline = arguments["candidate"], arguments.get("baseline")
    if arguments.get("evaluate"):
        for name in (baseline, run):
            if name is not None and not evaluated(lake, name, policy.named()):
                evaluation.evaluate(lake, name, policy.named(), progress=_images(work, f"run {name}"))
    verdict = gates.gate(lake, run, baseline, policy)
    detail = {"gate": verdict.id, "baseline": verdict.baseline, "outcome": verdict.outcome, "blocks": verdict.blocks}
    work.audit("gate", verdict.candidate, detail)
    return verdict


def gate_result(verdict: GateVerdict) -> dict[str, Any]:
    names = ("candidate", "baseline", "outcome", "blocks")
    return {"gate": verdict.id, **{name: getattr(verdict, name) for name in names}}


def evaluated(lake: Lake, run: str, names: Any = ()) -> bool:
    """Whether the run is evaluated on every evaluation and regression slice of today, and on the slices `names`."""
    measured = {row["slice"] for row in runs.metrics(lake, run) if row["evaluation"] is not None}
    return measured >= {slice_.id for slice_ in evaluation.slices_of(lake, names)}


def _recipe(arguments: Arguments) -> Recipe:
    return Recipe.of(arguments.get("recipe", {}), "recipe")


def _check_slices(lake: Lake, arguments: Arguments) -> None:
    if not arguments.get("train"):
        raise BadInput("name a slice to train on with --train SLICE; `lakeloop slice list` shows the slices")
    for use in SPLITS:
        for name in arguments.get(use, ()):
            slices.get(lake, name)


def _steps(work: Work) -> Callable[[dict[str, Any]], None]:
    """Passes the state of a training on: steps, the epoch, the loss, and the metrics after each epoch."""

    def report(state: dict[str, Any]) -> None:
        # The metrics of an epoch are in the table; here they are for the display of the command.
        work.progress(
            state["step"],
            max(1, state["steps"]),
            "steps",
            f"epoch {min(state['epoch'] + 1, state['epochs'])} of {state['epochs']}",
            **state,
        )

    return report


def _images(work: Work, stage: str = "") -> Callable[[int, int], None]:
    return lambda done, total: work.progress(done, total, "images", stage)
