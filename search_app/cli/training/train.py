"""train, tune, runs: from slices to a model, the search for a better recipe, and the record of both."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.cli.terminal import Add, open_lake, output

if TYPE_CHECKING:
    from training.registry.recipe import Recipe
    from training.registry.runs import Run


def register(add: Add, runs: Any) -> None:
    p = add("train", _train, "train a model on slices, or go on with a run that was stopped")
    p.add_argument("--resume", metavar="RUN", help="go on with this run; its slices and recipe are its own")
    _slices(p)
    p.add_argument("--from", dest="parent", metavar="RUN|MODEL", help="go on from the weights of this one")
    p.add_argument("--model", metavar="NAME", help="the model this makes a version of (default: model)")
    _recipe(p)
    p.add_argument(
        "--weights", type=Path, metavar="FILE", help="pretrained weights of the backbone (.safetensors, .pth)"
    )
    p.add_argument("--trust-sha256", metavar="HEX", help="SHA-256 of a .pth or .pt file that you vouch for")
    p.add_argument("--tensorboard", type=Path, metavar="DIR", help="the curves for TensorBoard, too")
    _machine(p)

    p = add("tune", _tune, "try settings or architectures, compare them, keep the best")
    _slices(p)
    p.add_argument("--name", metavar="NAME", default="search", help="the search; the same name goes on with it")
    p.add_argument("--model", metavar="NAME", help="the model its runs are versions of (default: model)")
    _recipe(p)
    p.add_argument("--try", dest="tried", action="append", default=[], metavar="KEY=RANGE",
                   help="rate=1e-4..1e-2, epochs=5..20, freeze=none,backbone; again for more")  # fmt: skip
    p.add_argument("--architectures", metavar="A,B,...", help="compare these, each with the same settings tried")
    p.add_argument("--trials", type=int, default=20, metavar="N", help="in all, those of an earlier call among them")
    p.add_argument("--weights", type=Path, metavar="DIR", help="folder of ARCHITECTURE.safetensors to begin from")
    _machine(p)

    add("list", _list, "training runs, the newest first", runs).add_argument("--model", metavar="NAME")
    p = add("show", _show, "a run: recipe, data, result, and its metrics by epoch", runs)
    p.add_argument("name", metavar="RUN")


def _slices(p: argparse.ArgumentParser) -> None:
    p.add_argument("--train", action="append", default=[], metavar="SLICE", help="train on it; again for more")
    p.add_argument("--replay", action="append", default=[], metavar="SLICE", help="older images, against forgetting")
    p.add_argument("--validation", action="append", default=[], metavar="SLICE",
                   help="choose the epoch by it (default: a share of the training images, by hash)")  # fmt: skip
    p.add_argument("--test", action="append", default=[], metavar="SLICE", help="measured once, at the end")


def _recipe(p: argparse.ArgumentParser) -> None:
    p.add_argument("--architecture", metavar="A", help="efficientnet-lite0, resnet18, clip-vit-b-32, or a name of timm")
    p.add_argument(
        "--recipe", type=Path, metavar="FILE", help="settings, .toml or .json; docs/training.md has them all"
    )
    p.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="one setting")


def _machine(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: cores less one)")


def _train(args: argparse.Namespace) -> int:
    from training.fit import train_model

    if args.workers is not None and args.workers < 0:
        raise BadInput(f"--workers is {args.workers}; it is 0 or more")
    opened = open_lake(args)
    machine = {"device": args.device, "workers": args.workers, "tensorboard": args.tensorboard}
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
            raise BadInput("--resume goes on with a run as it is: give no slices and no settings, or train a new run")
        with _steps(args) as tell:
            return _said(args, train_model.resume(opened, args.resume, progress=tell, **machine))
    with _steps(args) as tell:
        run = train_model.train(
            opened,
            train=args.train,
            replay=args.replay,
            validation=args.validation,
            test=args.test,
            recipe=recipe_of(args),
            name=args.model or "model",
            parent=args.parent,
            weights=args.weights,
            trust_sha256=args.trust_sha256,
            progress=tell,
            **machine,
        )
    from lake.access import audit

    audit.record(opened, "train", run.id, detail={"model": run.model, "train": args.train, "replay": args.replay})
    return _said(args, run)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """What the file says, then --architecture, then each --set."""
    from training.registry import recipe as recipes

    made = recipes.Recipe()
    if args.recipe:
        made = made.changed(recipes.read(args.recipe), str(args.recipe))
    if args.architecture:
        made = made.changed({"architecture": args.architecture}, "--architecture")
    return made.with_words(args.settings)


def _tune(args: argparse.Namespace) -> int:
    from training.fit import tuning

    opened = open_lake(args)
    names = [one for one in (args.architectures or "").split(",") if one]
    with _steps(args) as tell:
        found = tuning.tune(
            opened,
            args.name,
            recipe=recipe_of(args),
            tried=tuning.space(args.tried, names),
            trials=args.trials,
            train=args.train,
            replay=args.replay,
            validation=args.validation,
            test=args.test,
            model=args.model or "model",
            weights=args.weights,
            device=args.device,
            workers=args.workers,
            progress=tell,
        )
    lines = [f"search {found.name}: {found.done} trials, {found.pruned} of them given up early, by {found.metric}"]
    for place, one in enumerate(found.best):
        settings = " ".join(f"{key}={value}" for key, value in one.settings.items())
        lines.append(f"{place + 1:>3}. {one.value:.4f}  run {one.run}  {settings}")
    return output(args, found.as_dict(), "\n".join(lines))


def _list(args: argparse.Namespace) -> int:
    from training.registry import runs

    found = runs.list(open_lake(args), model=args.model)
    lines = [
        f"{r.id}  {r.started_at:%Y-%m-%d %H:%M}  {r.status:<8} {r.model:<16} {r.kind:<9} {_what(r)}"
        + (f"  from {r.parent}" if r.parent else "")
        + (f"  {r.error}" if r.error else "")
        for r in found
    ]
    none = "no runs yet; make one with: lakeloop train --train SLICE"
    return output(args, [_facts(r) for r in found], "\n".join(lines) or none)


def _show(args: argparse.Namespace) -> int:
    import json

    from lake.sql import tables
    from training.registry import runs

    opened = open_lake(args)
    run = runs.get(opened, args.name)
    rows = runs.metrics(opened, run.id)
    lines = [f"run {run.id} of model {run.model}: {run.kind}, {_what(run)}, {run.status}"]
    lines += [f"  error: {run.error}"] if run.error else []
    for one in run.data.get("slices", []):
        lines.append(f"  {one['use']:<10} {one['id']} ({one['images']:,} images)")
    for use, split in run.data.get("splits", {}).items():
        if split["images"]:
            counts = ", ".join(f"{name} {n:,}" for name, n in split["classes"].items())
            lines.append(f"  {split['images']:>7,} images of {use}: {counts}")
    for reason, n in run.data.get("left_out", {}).items():
        lines.append(f"  {n:>7,} images left out: {reason}")
    if "result" in run.data:
        lines.append(f"  result: {json.dumps(run.data['result'])}")
    for row in rows:
        where = row["slice"] or row["split"] or ""
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        epoch = "" if row["epoch"] is None else f"epoch {row['epoch']:g}"
        lines.append(f"  {epoch:<10} {where:<20} {row['metric']:<20} {value}")
    return output(args, _facts(run) | {"metrics": tables.plain(rows)}, "\n".join(lines))


def _what(run: Run) -> str:
    settings = run.settings
    return (
        str(settings.get("architecture", "")) if run.kind == "finetune" else str(settings.get("embedder") or "vectors")
    )


def _facts(run: Run) -> dict[str, Any]:
    from lake.sql import tables

    facts: dict[str, Any] = tables.plain(vars(run))
    facts["recipe"] = facts.pop("settings")
    return facts


def _said(args: argparse.Namespace, run: Run) -> int:
    result = run.data.get("result", {})
    held = result.get("validation", {})
    score = "".join(f", {name} {held[name]:.3f}" for name in ("balanced_accuracy", "miou", "map_50") if name in held)
    ended = f" ({result['ended']})" if "ended" in result else ""
    return output(args, _facts(run), f"run {run.id} of model {run.model} is {run.status}{ended}{score}")


@contextmanager
def _steps(args: argparse.Namespace) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar of steps when a person looks, and a line for each epoch."""
    import sys

    if args.json:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(unit=" steps", file=sys.stderr, leave=False, disable=not sys.stderr.isatty()) as bar:

        def tell(said: dict[str, Any]) -> None:
            if bar.total != said["steps"]:
                bar.reset(said["steps"])
            bar.update(said["step"] - bar.n)
            if said["loss"] is not None:
                bar.set_postfix_str(f"loss {said['loss']:.4f}")
            if "metrics" in said:
                held = " ".join(
                    f"{row['slice'] or row['split']} {row['metric']} {row['value']:.4f}"
                    for row in said["metrics"]
                    if row["value"] is not None and row["metric"] != "ece"
                )
                bar.write(f"epoch {said['epoch']}/{said['epochs']}  {held}{'  *' if said['best'] else ''}", sys.stderr)

        yield tell
