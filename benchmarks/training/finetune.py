"""`finetune`: steps per second of `lakeloop train`, beside a bare training loop on tensors in memory.

Both have the same network (random weights), optimiser, batch size and number of threads. lakeloop reads images from a
lake, decodes and augments them in worker processes, and checks the loss of every step; the bare loop does forward,
backward and step only. Both are timed from step WARM to the last step of the last epoch, including the end of an epoch
(a row in the lake, a checkpoint, waiting for the next first batch). There is no validation.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

from benchmarks.harness.rounds import CORES, Contender, Options, estimate, noise, rounds, undisturbed
from benchmarks.training import photograph_lake

PARTS = ("resnet18", "efficientnet-lite0")
IMAGES, IMAGES_QUICK = 256, 96
EPOCHS = 2
BATCH = 16
ROUNDS, ROUNDS_QUICK = 5, 3
WARM = 2
GOAL = 0.9


def measure(options: Options) -> dict[str, Any]:
    """Ratios are ours / bare; the goal is 0.9."""
    uri, _, images = photograph_lake.make(options, IMAGES_QUICK if options.quick else IMAGES)
    document: dict[str, Any] = {"ours": {}, "peers": {"bare loop": {}}, "ratios": {}, "figures": {"goal": GOAL}}
    for part in options.parts:
        arguments = {"architecture": part, "images": images}
        contenders = [
            Contender("lakeloop", "benchmarks.training.finetune:ours", {**arguments, "uri": uri}),
            Contender("bare loop", "benchmarks.training.finetune:bare", arguments),
        ]
        done = rounds(contenders, options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS), options.work)
        document["figures"][f"noise {part}"] = noise(done)
        rates = [{name: process.result["steps_per_second"] for name, process in r.items()} for r in undisturbed(done)]
        document["ours"][f"steps_per_second {part}"] = estimate(r["lakeloop"] for r in rates)
        document["peers"]["bare loop"][f"steps_per_second {part}"] = estimate(r["bare loop"] for r in rates)
        document["ratios"][f"steps_per_second {part}: lakeloop / bare loop"] = estimate(
            r["lakeloop"] / r["bare loop"] for r in rates
        )
    return document


def ours(uri: str, architecture: str, images: int, turn: int) -> dict[str, float]:
    """A contender: steps per second of a lakeloop run."""
    from embeddings.embedders import torch_import
    from lake import open_lake
    from training.fit import train_model
    from training.registry.recipe import Recipe

    torch_import.torch().set_num_threads(CORES)
    recipe = Recipe(
        architecture=architecture,
        pretrained=False,
        batch=BATCH,
        epochs=EPOCHS,
        validation=0.0,
        seed=turn,
        calibrate=False,
    )
    moments: list[float] = []

    def tell(state: dict[str, Any]) -> None:
        if "metrics" not in state:
            moments.append(perf_counter())

    train_model.train(open_lake.open(uri), train=["all"], recipe=recipe, device="cpu", progress=tell)
    return _rate(moments)


def bare(architecture: str, images: int, turn: int) -> dict[str, float]:
    """A contender: steps per second of forward, backward and step on prepared tensors."""
    from embeddings.embedders import torch_import
    from training.tasks.classification import Classification

    torch = torch_import.torch()
    torch.set_num_threads(CORES)
    torch.manual_seed(turn)
    task = Classification()
    network = task.network(architecture, ["a", "b"], pretrained=False).to(memory_format=torch.channels_last).train()
    side = task.side(architecture)
    steps = images // BATCH
    batches = [
        torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2) for _ in range(steps)
    ]
    labels = torch.randint(0, 2, (steps, BATCH))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    moments = []
    for _ in range(EPOCHS):
        for batch, label in zip(batches, labels, strict=True):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(batch), label).backward()
            optimiser.step()
            moments.append(perf_counter())
    return _rate(moments)


def _rate(moments: list[float]) -> dict[str, float]:
    """Steps per second, from the times in seconds at which steps ended."""
    warm = moments[WARM:]
    return {"steps_per_second": (len(warm) - 1) / (warm[-1] - warm[0]), "steps": float(len(warm) - 1)}
