"""train, tune, runs: trains models on slices, searches for settings, shows training runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.foreground import add_detach, run_job
from search_app.cli.terminal import Add, open_lake, output

if TYPE_CHECKING:
    import datetime as dt

    from lake.jobs.live_state import Progress
    from lake.storage.store import Lake
    from training.registry.recipe import Recipe
    from training.registry.runs import Run


def register(add: Add, runs: Any) -> None:
    p = add("train", _train, "train a model on slices, or resume a stopped run", writes=True)
    p.add_argument("--resume", metavar="RUN", help="resume this run with its own slices and recipe")
    _slices(p)
    p.add_argument("--from", dest="parent", metavar="RUN|MODEL", help="start from the weights of this run or model")
    p.add_argument("--model", metavar="NAME", help="name of the model (default: model)")
    _recipe(p)
    p.add_argument(
        "--weights", type=Path, metavar="FILE", help="pretrained weights of the backbone (.safetensors, .pth)"
    )
    p.add_argument("--trust-sha256", metavar="HEX", help="SHA-256 of a .pth or .pt file that you trust")
    p.add_argument("--tensorboard", type=Path, metavar="DIR", help="also write the curves for TensorBoard")
    _machine(p)
    add_detach(p)

    p = add("tune", _tune, "try settings or architectures and compare them", writes=True)
    _slices(p)
    p.add_argument("--name", metavar="NAME", default="search", help="name of the search; the same name resumes it")
    p.add_argument("--model", metavar="NAME", help="name of the model of its runs (default: model)")
    _recipe(p)
    p.add_argument("--try", dest="tried", action="append", default=[], metavar="KEY=RANGE",
                   help="rate=1e-4..1e-2, epochs=5..20, freeze=none,backbone; repeat for more")  # fmt: skip
    p.add_argument(
        "--architectures", metavar="A,B,...", help="compare these architectures, each with the same settings"
    )
    p.add_argument(
        "--trials", type=int, default=20, metavar="N", help="number of trials, including those of earlier calls"
    )
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder with ARCHITECTURE.safetensors to start from")
    _machine(p)
    add_detach(p)

    add("list", _list, "list training runs, newest first", runs).add_argument("--model", metavar="NAME")
    p = add("show", _show, "show a run: recipe, data, result, metrics by epoch", runs)
    p.add_argument("name", metavar="RUN")


def _slices(p: argparse.ArgumentParser) -> None:
    p.add_argument("--train", action="append", default=[], metavar="SLICE", help="train on this slice; repeat for more")
    p.add_argument(
        "--replay", action="append", default=[], metavar="SLICE", help="older images that prevent forgetting"
    )
    p.add_argument("--validation", action="append", default=[], metavar="SLICE",
                   help="choose the epoch on this slice (default: a share of the training images)")  # fmt: skip
    p.add_argument(
        "--test", action="append", default=[], metavar="SLICE", help="evaluate on this slice once, at the end"
    )


def _recipe(p: argparse.ArgumentParser) -> None:
    p.add_argument("--architecture", metavar="A", help="efficientnet-lite0, resnet18, clip-vit-b-32, or a name of timm")
    p.add_argument(
        "--recipe", type=Path, metavar="FILE", help="settings in .toml or .json; docs/training.md lists them"
    )
    p.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="one setting")


def _machine(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: number of cores minus one)")


def _train(args: argparse.Namespace) -> int:
    from lake.storage import store

    if args.workers is not None and args.workers < 0:
        raise BadInput(f"--workers is {args.workers}; it must be at least 0")
    lake = open_lake(args)
    machine = {"device": args.device, "workers": args.workers, "tensorboard": _path(args.tensorboard)}
    if args.resume:
        own = (
            "train",
            "replay",
            "validation",
            "test",
            "parent",
            "model",
            "recipe",
            "settings",
            "architecture",
            "weights",
        )
        if any(getattr(args, name) for name in own):
            raise BadInput("--resume continues a run with its own slices and settings: give none, or train a new run")
        arguments = {"resume": args.resume}
    else:
        arguments = _shared(args) | {"parent": args.parent, "trust_sha256": args.trust_sha256}
    begun = store.now()
    try:
        with _steps(args) as tell:
            run = run_job(args, lake, "train", arguments | machine, tell)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_resume(lake, args, begun)) from None
    return 0 if run is None else _output_run(args, run)


def _how_to_resume(lake: Lake, args: argparse.Namespace, begun: dt.datetime) -> str:
    from training.registry import runs

    mine = [run.id for run in runs.list(lake) if run.started_at >= begun and run.status in ("stopped", "running")]
    name = args.resume or (mine[0] if mine else None)
    if name is None:
        return "no run had begun; run the same command again"
    command = f"lakeloop train --resume {name} --lake {lake.uri}"
    return f"the run is kept as of its newest checkpoint; continue it with: {command}"


def _shared(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that train and tune have in common."""
    import json

    uses = {name: getattr(args, name) or None for name in ("train", "replay", "validation", "test")}
    recipe = json.loads(recipe_of(args).json())
    return {**uses, "recipe": recipe, "name": args.model or "model", "weights": _path(args.weights)}


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe: the file, then --architecture, then each --set."""
    from training.registry import recipe as recipes

    recipe = recipes.Recipe()
    if args.recipe:
        recipe = recipe.changed(recipes.read(args.recipe), str(args.recipe))
    if args.architecture:
        recipe = recipe.changed({"architecture": args.architecture}, "--architecture")
    return recipe.with_words(args.settings)


def _tune(args: argparse.Namespace) -> int:
    lake = open_lake(args)
    names = [name for name in (args.architectures or "").split(",") if name]
    arguments = {"search": args.name, "tried": args.tried, "architectures": names, "trials": args.trials}
    arguments |= _shared(args) | {"device": args.device, "workers": args.workers}
    with _steps(args) as tell:
        search = run_job(args, lake, "tune", arguments, tell)
    if search is None:
        return 0
    lines = [f"search {search.name}: {search.done} trials, {search.pruned} of them stopped early, by {search.metric}"]
    for index, trial in enumerate(search.best):
        settings = " ".join(f"{key}={value}" for key, value in trial.settings.items())
        lines.append(f"{index + 1:>3}. {trial.value:.4f}  run {trial.run}  {settings}")
    return output(args, search.as_dict(), "\n".join(lines))


def _list(args: argparse.Namespace) -> int:
    from training.registry import runs

    selected = runs.list(open_lake(args), model=args.model)
    lines = [
        f"{run.id}  {run.started_at:%Y-%m-%d %H:%M}  {run.status:<8} {run.model:<16} {run.kind:<9} {_backbone(run)}"
        + (f"  from {run.parent}" if run.parent else "")
        + (f"  {run.error}" if run.error else "")
        for run in selected
    ]
    none = "no runs yet; start one with: lakeloop train --train SLICE"
    return output(args, [_facts(run) for run in selected], "\n".join(lines) or none)


def _show(args: argparse.Namespace) -> int:
    import json

    from lake.sql import tables
    from training.registry import runs

    lake = open_lake(args)
    run = runs.get(lake, args.name)
    rows = runs.metrics(lake, run.id)
    lines = [f"run {run.id} of model {run.model}: {run.kind}, {_backbone(run)}, {run.status}"]
    lines += [f"  error: {run.error}"] if run.error else []
    for slice_ in run.data.get("slices", []):
        lines.append(f"  {slice_['use']:<10} {slice_['id']} ({slice_['images']:,} images)")
    for use, split in run.data.get("splits", {}).items():
        if split["images"]:
            counts = ", ".join(f"{name} {n:,}" for name, n in split["classes"].items())
            lines.append(f"  {split['images']:>7,} images of {use}: {counts}")
    for reason, n in run.data.get("left_out", {}).items():
        lines.append(f"  {n:>7,} images left out: {reason}")
    if "result" in run.data:
        lines.append(f"  result: {json.dumps(run.data['result'])}")
    for row in rows:
        scope = row["slice"] or row["split"] or ""
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        epoch = "" if row["epoch"] is None else f"epoch {row['epoch']:g}"
        lines.append(f"  {epoch:<10} {scope:<20} {row['metric']:<20} {value}")
    return output(args, _facts(run) | {"metrics": tables.plain(rows)}, "\n".join(lines))


def _backbone(run: Run) -> str:
    settings = run.settings
    return (
        str(settings.get("architecture", "")) if run.kind == "finetune" else str(settings.get("embedder") or "vectors")
    )


def _facts(run: Run) -> dict[str, Any]:
    from lake.sql import tables

    facts: dict[str, Any] = tables.plain(vars(run))
    facts["recipe"] = facts.pop("settings")
    return facts


def _output_run(args: argparse.Namespace, run: Run) -> int:
    result = run.data.get("result", {})
    validation = result.get("validation", {})
    score = "".join(
        f", {name} {validation[name]:.3f}" for name in ("balanced_accuracy", "miou", "map_50") if name in validation
    )
    ended = f" ({result['ended']})" if "ended" in result else ""
    return output(args, _facts(run), f"run {run.id} of model {run.model} is {run.status}{ended}{score}")


@contextmanager
def _steps(args: argparse.Namespace) -> Iterator[Callable[[Progress], None]]:
    """Shows a bar of steps on a terminal, and a line for each epoch."""
    import sys

    if args.json:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(unit=" steps", file=sys.stderr, leave=False, disable=not sys.stderr.isatty()) as bar:

        def report(progress: Progress) -> None:
            state = progress.facts
            if bar.total != state["steps"]:
                bar.reset(state["steps"])
            bar.update(state["step"] - bar.n)
            if state["loss"] is not None:
                bar.set_postfix_str(f"loss {state['loss']:.4f}")
            if "metrics" in state:
                metrics = " ".join(
                    f"{row['slice'] or row['split']} {row['metric']} {row['value']:.4f}"
                    for row in state["metrics"]
                    if row["value"] is not None and row["metric"] != "ece"
                )
                bar.write(
                    f"epoch {state['epoch']}/{state['epochs']}  {metrics}{'  *' if state['best'] else ''}", sys.stderr
                )

        yield report
