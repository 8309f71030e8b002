"""The training loop, for every task.

`fit` continues at a run's newest checkpoint, or at the beginning if there is none: starting and resuming are the same.
`train_model.py` creates the run. The modules that the loop calls explain each step.
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
from training.data.augmentation import Augmentation, Preparation
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
    from training.data.splits import TrainingImage
    from training.registry.recipe import Recipe

ProgressCallback = Callable[[dict[str, Any]], None]

# A kill loses at most this much work, however long an epoch takes.
CHECKPOINT_SECONDS = 600.0
# Validation images for the temperature; training images for the means and variances of batch normalisation.
CALIBRATED_ON = 2_000
NORMS_ON = 4_096
EVALUATED_AT_ONCE = 64


def fit(
    lake: Lake,
    run: Run,
    *,
    processes: Processes | None = None,
    workers: int | None = None,
    progress: ProgressCallback | None = None,
    tensorboard: Path | None = None,
) -> Run:
    """Trains a run to its end, from its newest checkpoint if it has one. Returns the run as recorded at the end.

    `processes`: the device, and the other processes that take part; by default this process alone, on CUDA if there is
    a device. `progress` is called after every step with epoch, epochs, step, steps, loss and rate, and after every
    epoch also with its metrics. Raises CouldNot if the loss is no longer finite, BadInput if the run is done or another
    process trains it.
    """
    folder, processes = runs.folder(lake, run.id), processes or Processes()
    if run.status == "done":
        raise BadInput(f"run {run.id} is done; to continue from it, run: lakeloop train --from {run.id} --train SLICE")
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


def _loop(t: _Trainer, report: ProgressCallback, curves: Curves) -> Run:
    """Epochs of steps, an evaluation after each epoch, then the weights of the best epoch."""
    torch, recipe, at = torch_import.torch(), t.recipe, t.at
    if t.warm and not at.step and not at.batch:
        t.evaluate_epoch(curves, report)
    saved = time.monotonic()
    while at.epoch < recipe.epochs and not at.ended:
        backbones.training_mode(t.network, recipe.freeze)
        for samples in t.batches(at.epoch, at.batch):
            factor = learning_rate.factor(recipe, at.step, t.sampler.steps)
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
            report(t.state(factor))
        at.epoch, at.batch = at.epoch + 1, 0
        t.evaluate_epoch(curves, report)
        at.loss, at.images = 0.0, 0
        t.save()
    return t.finish(curves)


class _Trainer:
    """The state of a run: what a step needs, and what happens after each epoch."""

    def __init__(self, lake: Lake, run: Run, folder: Path, processes: Processes, workers: int | None) -> None:
        torch = torch_import.torch()
        self.lake, self.run, self.folder, self.processes = lake, run, folder, processes
        self.recipe: Recipe = run.recipe
        self.device = processes.device
        self.task: Task = task_registry.get(self.recipe.task, self.recipe.label_smoothing)
        table = trained_model.read_items(folder)
        images = {
            use: splits.images_of(lake, self.recipe.task, table, use)
            for use in ("train", "replay", "validation", "test")
        }
        self.images = [*images["train"], *images["replay"]]
        self.held_out = {"validation": images["validation"], "test": images["test"]}
        self.protected = {
            slice_["id"]: splits.images_of(lake, self.recipe.task, table, "protected", slice_["id"])
            for slice_ in run.data["slices"]
            if slice_["use"] == "protected"
        }
        index = {name: k for k, name in enumerate(run.classes)}
        classes = None
        if self.recipe.balance != "none":
            classes = [index[str(image.ground_truth.label)] for image in self.images]
        self.weights = sampling.weights(classes) if self.recipe.balance == "weights" and classes else None
        self.sampler = sampling.EpochSampler(
            len(images["train"]),
            len(images["replay"]),
            self.recipe.batch,
            self.recipe.seed,
            self.recipe.replay,
            classes if self.recipe.balance == "oversample" else None,
        )
        self.network, self.initial, start = trained_model.initial(folder, self.task, self.recipe, run.classes)
        self.network.to(self.device, memory_format=torch.channels_last)
        self.warm = bool(start["warm"])
        backbones.freeze(self.network, self.recipe.freeze)
        self.optimiser = _optimiser(self.network, self.recipe)
        self.at, self.best = checkpoint.load(folder / checkpoint.NAME, self.network, self.optimiser)
        if self.device.type == "cpu":
            # Another number of threads adds in another order, with other rounding.
            self.at.threads = self.at.threads or torch.get_num_threads()
            torch.set_num_threads(self.at.threads)
        self.pull = None
        if self.recipe.l2_sp:
            self.pull = forgetting.Pull(self.network, self.initial, self.recipe.l2_sp, start["drawn"])
        self.shared = processes.shared(self.network)
        side = self.recipe.size or self.task.side(self.recipe.architecture)
        geometry = self.task.geometry if self.recipe.geometry == "own" else self.recipe.geometry
        self.plain = Preparation(side, geometry, index)
        self.varied = replace(self.plain, augmentation=Augmentation.of(self.recipe))
        evaluated = [image for images in (*self.held_out.values(), *self.protected.values()) for image in images]
        self.feed = Feed(lake, [image.image_id for image in (*self.images, *evaluated)], workers)

    def __enter__(self) -> _Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.__exit__()

    def batches(self, epoch: int, start: int) -> Iterator[list[Sample]]:
        """The batches of an epoch from batch `start` on; with several processes, this process's part of each."""

        def draws(number: int, batch: np.ndarray) -> list[Draw]:
            return [
                Draw(
                    self.images[batch[i]],
                    (self.recipe.seed, epoch, number, i),
                    1.0 if self.weights is None else float(self.weights[batch[i]]),
                )
                for i in range(self.processes.rank, len(batch), self.processes.world)
            ]

        order = self.sampler.epoch(epoch)
        return self.feed.batches((draws(n, order[n]) for n in range(start, len(order))), self.varied)

    def evaluate_epoch(self, curves: Curves, report: ProgressCallback) -> None:
        """Evaluates validation images and protected slices, logs the metrics, and decides whether to stop."""
        at, rows, value, best = self.at, [], None, False
        if self.processes.first:
            if at.images:
                rows.append(self._row("loss", at.loss / at.images, at.images, split="train"))
            if validation := self.held_out["validation"]:
                metrics = self._evaluated(validation)
                rows += [self._row(k, v, len(validation), split="validation") for k, v in metrics.items()]
                value = early_stopping.directed(self.metric, metrics[self.metric])
            protected = {}
            for name, images in self.protected.items():
                metrics = self._evaluated(images)
                rows += [self._row(k, v, len(images), slice=name) for k, v in metrics.items()]
                protected[name] = early_stopping.directed(self.metric, metrics[self.metric])
            best = early_stopping.update(self.recipe, at, value, protected, warm=self.warm)
            runs.log(self.lake, self.run.id, rows)
            curves.add(rows)
        self.at.ended = self.processes.broadcast(at.ended)
        if self.processes.broadcast(best):
            self.best = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
        report(self.state(None) | {"metrics": rows, "best": best, "ended": at.ended})

    @property
    def metric(self) -> str:
        return self.recipe.metric or self.task.metric

    def finish(self, curves: Curves) -> Run:
        """Saves the weights of the best epoch: averaged with the old ones if the recipe says so, and calibrated."""
        if not self.processes.first:
            return self.run
        self.network.load_state_dict(self.best if self.best is not None else self.initial)
        result: dict[str, Any] = {"best_epoch": self.at.best_epoch, "ended": self.at.ended or "all epochs done"}
        if self.recipe.wise_ft < 1.0:
            self.network.load_state_dict(
                forgetting.average(self.initial, self.network.state_dict(), self.recipe.wise_ft)
            )
            result["norms_refreshed"] = forgetting.refresh_norms(self.network, self._norm_batches())
        self.network.eval()
        validation, test = self.held_out["validation"], self.held_out["test"]
        if self.recipe.calibrate and validation:
            samples = [sample for batch in self._read(validation[:CALIBRATED_ON]) for sample in batch]
            result |= self.task.calibrate(self.network, samples)
        if validation:  # the metrics of exactly these weights, which may be those of no epoch
            result["validation"] = self._evaluated(validation)
        metrics = self._evaluated(test) if test else {}
        rows = [self._row(k, v, len(test), split="test") for k, v in metrics.items()]
        runs.log(self.lake, self.run.id, rows)
        curves.add(rows)
        if self.feed.unreadable:
            result["unreadable"] = dict(sorted(self.feed.unreadable.items()))
        trained_model.save(self.folder, self.network, self.recipe, self.run.classes, self.plain)
        artifacts = {path.stem: runs.artifact(self.lake, path) for path in trained_model.files(self.folder)}
        (self.folder / checkpoint.NAME).unlink(missing_ok=True)
        return runs.end(self.lake, self.run, "done", artifacts=artifacts, data=self.run.data | {"result": result})

    def save(self) -> None:
        if self.processes.first:
            checkpoint.save(self.folder / checkpoint.NAME, self.network, self.optimiser, self.at, self.best)

    def state(self, factor: float | None) -> dict[str, Any]:
        """What `progress` is called with. `factor`: of the learning rate; None after an epoch."""
        at = self.at
        return {
            "epoch": at.epoch,
            "epochs": self.recipe.epochs,
            "step": at.step,
            "steps": self.recipe.epochs * self.sampler.steps,
            "loss": at.loss / at.images if at.images else None,
            "rate": None if factor is None else self.recipe.rate * factor,
        }

    def _evaluated(self, images: Sequence[TrainingImage]) -> dict[str, float]:
        """The network's metrics on these images. Their pixels are released after the prediction."""
        self.network.eval()
        samples: list[Sample] = []
        predictions: list[Prediction] = []
        for batch in self._read(images):
            with torch_import.torch().no_grad():
                predictions += self.task.predictions(self.network, batch, self.run.classes)
            samples += [replace(sample, image=np.broadcast_to(np.uint8(0), sample.image.shape)) for sample in batch]
        if not samples:
            raise CouldNot(f"none of {len(images):,} images can be read; see: lakeloop doctor")
        metrics = self.task.evaluate(samples, predictions, self.run.classes)
        if self.metric not in metrics:  # a metric that is computed from rows, perhaps a package's own
            truths = {image.image_id: vars(image.ground_truth) for image in images}
            evaluated = EvaluatedPredictions.of(
                [truths[sample.image_id] for sample in samples],
                [prediction.row() for prediction in predictions],
                self.run.classes,
            )
            metrics[self.metric] = metric_registry.get(self.metric).value(evaluated)
        return metrics

    def _read(self, images: Sequence[TrainingImage]) -> Iterator[list[Sample]]:
        parts = (images[i : i + EVALUATED_AT_ONCE] for i in range(0, len(images), EVALUATED_AT_ONCE))
        for samples in self.feed.batches(([Draw(image) for image in part] for part in parts), self.plain):
            if samples:
                yield samples

    def _norm_batches(self) -> Iterator[torch.Tensor]:
        for samples in self._read(self.images[:NORMS_ON]):
            yield self.task.batch(samples).images.to(self.device)

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
    """AdamW or SGD, without weight decay for biases and normalisation."""
    torch = torch_import.torch()
    groups: list[dict[str, Any]] = []
    for group in backbones.rate_groups(network, recipe.rate, recipe.backbone_rate, recipe.layer_decay):
        for decays in (True, False):
            parameters = [p for p in group["params"] if (p.ndim > 1) is decays]
            if parameters:
                decay = recipe.weight_decay if decays else 0.0
                groups.append({"params": parameters, "rate": group["rate"], "weight_decay": decay})
    if not groups:
        raise BadInput("every parameter is frozen: there is nothing to train")
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.rate)
