"""The training loop, whole, for every task.

`fit` goes on where a run's newest checkpoint stands, at its beginning if there is none: starting and resuming are the
same. `launch.py` makes the run; what each step means stands in the modules it calls.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings.embedders import torch_import
from lake.errors import BadInput, CouldNot
from training.data import sampling, splits
from training.data.augmentation import Look, Preparation
from training.data.feed import Draw, Feed
from training.fit import checkpoint, early_stopping, forgetting, learning_rate
from training.fit.distributed import Processes
from training.fit.tensorboard import Curves
from training.metrics import metric_registry
from training.metrics.metric import EvaluatedPredictions
from training.models import trained_model
from training.networks import backbones
from training.registry import runs
from training.registry.runs import Run
from training.tasks import task_registry
from training.tasks.task import Prediction, Sample, Task

if TYPE_CHECKING:
    import torch

    from lake.storage.store import Lake
    from training.data.splits import Item
    from training.registry.recipe import Recipe

Progress = Callable[[dict[str, Any]], None]

# However long an epoch takes, no more than this is lost by a kill.
CHECKPOINT_SECONDS = 600.0
# Validation images that a temperature is found on; images that batch normalisation is found anew on.
CALIBRATED_ON = 2_000
NORMS_ON = 4_096
JUDGED_AT_ONCE = 64


def fit(
    lake: Lake,
    run: Run,
    *,
    processes: Processes | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    tensorboard: Path | None = None,
) -> Run:
    """Trains a run to its end, from its newest checkpoint if it has one; the run as it is recorded then.

    `processes`: where, and who else takes part; by default this process alone, on CUDA when there is one.

    `progress` is told of every step: epoch, epochs, step, steps, loss, rate; and of every epoch: its metrics.
    Raises CouldNot when the loss stops being a number, BadInput when the run is done, or being trained elsewhere.
    """
    folder, processes = runs.folder(lake, run.id), processes or Processes()
    if run.status == "done":
        raise BadInput(f"run {run.id} is done; go on from it with: lakeloop train --from {run.id} --train SLICE")
    with checkpoint.locked(folder, processes.first), checkpoint.seeded(run.recipe.seed):
        try:
            with _Trainer(lake, run, folder, processes, workers) as trainer:
                curves = Curves(tensorboard if processes.first else None)
                return _loop(trainer, progress or (lambda _: None), curves)
        except KeyboardInterrupt:
            runs.end(lake, run, "stopped")
            raise
        except Exception as error:
            runs.end(lake, run, "failed", str(error) or type(error).__name__)
            raise


def _loop(t: _Trainer, tell: Progress, curves: Curves) -> Run:
    """Epochs of steps; after each epoch a look at every split; then the weights that count."""
    torch, recipe, at = torch_import.torch(), t.recipe, t.at
    if t.warm and not at.step and not at.batch:
        t.look(curves, tell)
    saved = time.monotonic()
    while at.epoch < recipe.epochs and not at.ended:
        backbones.training_mode(t.network, recipe.freeze)
        for samples in t.batches(at.epoch, at.batch):
            factor = learning_rate.factor(recipe, at.step, t.sampling.steps)
            for group in t.optimiser.param_groups:
                group["lr"] = group["rate"] * factor
            if samples:
                batch = t.task.batch(samples).to(t.device)
                t.optimiser.zero_grad()
                with torch.autocast(t.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                    loss = t.task.loss(t.shared, batch)
                loss.backward()
                if t.pull is not None:
                    t.pull()
                if recipe.clip:
                    torch.nn.utils.clip_grad_norm_(t.network.parameters(), recipe.clip)
                t.optimiser.step()
                at.loss, at.images = at.loss + float(loss.detach()) * len(samples), at.images + len(samples)
                if not math.isfinite(at.loss):
                    raise CouldNot(
                        f"the loss is {float(loss.detach())} in step {at.step}; try a lower rate or --set clip=1"
                    )
            at.step, at.batch = at.step + 1, at.batch + 1
            due = recipe.checkpoint_steps and at.step % recipe.checkpoint_steps == 0
            if due or time.monotonic() - saved > CHECKPOINT_SECONDS:
                t.save()
                saved = time.monotonic()
            tell(t.said(factor))
        at.epoch, at.batch = at.epoch + 1, 0
        t.look(curves, tell)
        at.loss, at.images = 0.0, 0
        t.save()
    return t.finish(curves)


class _Trainer:
    """What a run needs to take a step, and what it does after each epoch."""

    def __init__(self, lake: Lake, run: Run, folder: Path, processes: Processes, workers: int | None) -> None:
        torch = torch_import.torch()
        self.lake, self.run, self.folder, self.processes = lake, run, folder, processes
        self.recipe: Recipe = run.recipe
        self.device = processes.device
        self.task: Task = task_registry.get(self.recipe.task, self.recipe.label_smoothing)
        table = trained_model.read_items(folder)
        use = {
            name: splits.items(lake, self.recipe.task, table, name)
            for name in ("train", "replay", "validation", "test")
        }
        self.items = [*use["train"], *use["replay"]]
        self.held = {"validation": use["validation"], "test": use["test"]}
        self.protected = {
            one["id"]: splits.items(lake, self.recipe.task, table, "protected", one["id"])
            for one in run.data["slices"]
            if one["use"] == "protected"
        }
        index = {name: place for place, name in enumerate(run.classes)}
        kinds = [index[str(item.truth.label)] for item in self.items] if self.recipe.balance != "none" else None
        self.weights = sampling.weights(kinds) if self.recipe.balance == "weights" and kinds else None
        self.sampling = sampling.Sampling(
            len(use["train"]),
            len(use["replay"]),
            self.recipe.batch,
            self.recipe.seed,
            self.recipe.replay,
            kinds if self.recipe.balance == "oversample" else None,
        )
        self.network, self.initial, began = trained_model.initial(folder, self.task, self.recipe, run.classes)
        self.network.to(self.device, memory_format=torch.channels_last)
        self.warm = bool(began["warm"])
        backbones.freeze(self.network, self.recipe.freeze)
        self.optimiser = _optimiser(self.network, self.recipe)
        self.at, self.best = checkpoint.load(folder / checkpoint.NAME, self.network, self.optimiser)
        if self.device.type == "cpu":
            # Sums split among another number of threads are other sums.
            self.at.threads = self.at.threads or torch.get_num_threads()
            torch.set_num_threads(self.at.threads)
        self.pull = None
        if self.recipe.l2_sp:
            self.pull = forgetting.Pull(self.network, self.initial, self.recipe.l2_sp, began["drawn"])
        self.shared = processes.shared(self.network)
        side = self.recipe.size or self.task.side(self.recipe.architecture)
        geometry = self.task.geometry if self.recipe.geometry == "own" else self.recipe.geometry
        self.plain = Preparation(side, geometry, index)
        self.varied = replace(self.plain, look=Look.of(self.recipe))
        everything = [*self.items, *(i for some in (*self.held.values(), *self.protected.values()) for i in some)]
        self.feed = Feed(lake, [item.image_id for item in everything], workers)

    def __enter__(self) -> _Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.__exit__()

    def batches(self, epoch: int, start: int) -> Iterator[list[Sample]]:
        """The batches of an epoch from the `start`-th on; of several processes, this one's part of each."""

        def draws(number: int, batch: np.ndarray) -> list[Draw]:
            mine = range(self.processes.rank, len(batch), self.processes.world)
            return [
                Draw(
                    self.items[batch[place]],
                    (self.recipe.seed, epoch, number, place),
                    1.0 if self.weights is None else float(self.weights[batch[place]]),
                )
                for place in mine
            ]

        order = self.sampling.epoch(epoch)
        return self.feed.batches((draws(n, order[n]) for n in range(start, len(order))), self.varied)

    def look(self, curves: Curves, tell: Progress) -> None:
        """Measures validation and protected slices, notes it in the lake, and decides what follows."""
        at, rows, value, best = self.at, [], None, False
        if self.processes.first:
            if at.images:
                rows.append(self._row("loss", at.loss / at.images, at.images, split="train"))
            if self.held["validation"]:
                found = self._judged(self.held["validation"])
                rows += [self._row(k, v, len(self.held["validation"]), split="validation") for k, v in found.items()]
                value = early_stopping.directed(self.metric, found[self.metric])
            protected = {}
            for name, items in self.protected.items():
                found = self._judged(items)
                rows += [self._row(k, v, len(items), slice=name) for k, v in found.items()]
                protected[name] = early_stopping.directed(self.metric, found[self.metric])
            best = early_stopping.judge(self.recipe, at, value, protected, warm=self.warm)
            runs.log(self.lake, self.run.id, rows)
            curves.add(rows)
        self.at.ended = self.processes.told(at.ended)
        if self.processes.told(best):
            self.best = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
        tell(self.said(None) | {"metrics": rows, "best": best, "ended": at.ended})

    @property
    def metric(self) -> str:
        return self.recipe.metric or self.task.metric

    def finish(self, curves: Curves) -> Run:
        """The weights that count: of the best epoch, averaged with the old ones if asked for, calibrated; saved."""
        if not self.processes.first:
            return self.run
        self.network.load_state_dict(self.best if self.best is not None else self.initial)
        found: dict[str, Any] = {"best_epoch": self.at.best_epoch, "ended": self.at.ended or "all epochs done"}
        if self.recipe.wise_ft < 1.0:
            self.network.load_state_dict(
                forgetting.average(self.initial, self.network.state_dict(), self.recipe.wise_ft)
            )
            found["norms_refreshed"] = forgetting.refresh_norms(self.network, self._some_images())
        self.network.eval()
        if self.recipe.calibrate and self.held["validation"]:
            found |= self.task.calibrate(self.network, self._samples(self.held["validation"][:CALIBRATED_ON]))
        if self.held["validation"]:  # of these very weights, which no epoch may have had
            found["validation"] = self._judged(self.held["validation"])
        tested = self._judged(self.held["test"]) if self.held["test"] else {}
        rows = [self._row(k, v, len(self.held["test"]), split="test") for k, v in tested.items()]
        runs.log(self.lake, self.run.id, rows)
        curves.add(rows)
        if self.feed.unreadable:
            found["unreadable"] = dict(sorted(self.feed.unreadable.items()))
        trained_model.save(self.folder, self.network, self.recipe, self.run.classes, self.plain)
        artifacts = {p.stem: runs.artifact(self.lake, p) for p in trained_model.files(self.folder)}
        (self.folder / checkpoint.NAME).unlink(missing_ok=True)
        result = self.run.data | {"result": found}
        return runs.end(self.lake, self.run, "done", artifacts=artifacts, data=result)

    def save(self) -> None:
        if self.processes.first:
            checkpoint.save(self.folder / checkpoint.NAME, self.network, self.optimiser, self.at, self.best)

    def said(self, factor: float | None) -> dict[str, Any]:
        at = self.at
        mean = at.loss / at.images if at.images else None
        rate = None if factor is None else self.recipe.rate * factor
        return {
            "epoch": at.epoch,
            "epochs": self.recipe.epochs,
            "step": at.step,
            "steps": self.recipe.epochs * self.sampling.steps,
            "loss": mean,
            "rate": rate,
        }

    def _judged(self, items: Sequence[Item]) -> dict[str, float]:
        """Metrics of the network on these images; pixels are let go of once they are answered."""
        self.network.eval()
        samples: list[Sample] = []
        answers: list[Prediction] = []
        for part in self._read(items):
            with torch_import.torch().no_grad():
                answers += self.task.predictions(self.network, part, self.run.classes)
            samples += [replace(one, image=np.broadcast_to(np.uint8(0), one.image.shape)) for one in part]
        if not samples:
            raise CouldNot(f"none of {len(items):,} images can be read; see: lakeloop doctor")
        found = self.task.evaluate(samples, answers, self.run.classes)
        if self.metric not in found:  # one that is computed from the rows, perhaps a team's own
            truths = {item.image_id: vars(item.truth) for item in items}
            judged = EvaluatedPredictions.of(
                [truths[one.image_id] for one in samples], [one.row() for one in answers], self.run.classes
            )
            found[self.metric] = metric_registry.get(self.metric).value(judged)
        return found

    def _samples(self, items: Sequence[Item]) -> list[Sample]:
        return [one for part in self._read(items) for one in part]

    def _read(self, items: Sequence[Item]) -> Iterator[list[Sample]]:
        parts = (items[i : i + JUDGED_AT_ONCE] for i in range(0, len(items), JUDGED_AT_ONCE))
        for part in self.feed.batches(([Draw(item) for item in some] for some in parts), self.plain):
            if part:
                yield part

    def _some_images(self) -> Iterator[torch.Tensor]:
        for part in self._read(self.items[:NORMS_ON]):
            yield self.task.batch(part).images.to(self.device)

    def _row(
        self, metric: str, value: float, n: int, split: str | None = None, slice: str | None = None
    ) -> dict[str, Any]:
        return {
            "metric": metric,
            "value": None if math.isnan(value) else value,
            "n": n,
            "split": split,
            "slice": slice,
            "step": self.at.step,
            "epoch": float(self.at.epoch),
        }


def _optimiser(network: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW or SGD. Biases and normalisation have no weight decay."""
    torch = torch_import.torch()
    groups: list[dict[str, Any]] = []
    for group in backbones.rate_groups(network, recipe.rate, recipe.backbone_rate, recipe.layer_decay):
        for decays in (True, False):
            some = [p for p in group["params"] if (p.ndim > 1) is decays]
            if some:
                decay = recipe.weight_decay if decays else 0.0
                groups.append({"params": some, "rate": group["rate"], "weight_decay": decay})
    if not groups:
        raise BadInput("nothing is left to learn: everything is frozen")
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.rate)
