"""`loader`: images per second of an epoch from a lake, beside torchvision's ImageFolder.

Both use torch's DataLoader with the same transform (224 pixels), batch size and number of workers, shuffled. The first
batch does not count, because it waits for the workers to start. `main`: no workers; `workers`: two.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter
from typing import Any

from benchmarks.harness.rounds import Contender, Options, estimate, noise, rounds, undisturbed
from benchmarks.training import photograph_lake

PARTS = ("main", "workers")
WORKERS = {"main": 0, "workers": 2}
IMAGES, IMAGES_QUICK = 600, 200
ROUNDS, ROUNDS_QUICK = 5, 3
BATCH = 32


def measure(options: Options) -> dict[str, Any]:
    """Ratios are lakeloop / ImageFolder: above 1, the lake is faster."""
    uri, classes, _ = photograph_lake.make(options, IMAGES_QUICK if options.quick else IMAGES)
    document: dict[str, Any] = {"ours": {}, "peers": {"imagefolder": {}}, "ratios": {}, "figures": {}}
    for part in options.parts:
        contenders = [
            Contender("lakeloop", "benchmarks.training.loader:lake", {"uri": uri, "workers": WORKERS[part]}),
            Contender(
                "imagefolder", "benchmarks.training.loader:folder", {"root": str(classes), "workers": WORKERS[part]}
            ),
        ]
        count = options.rounds or (ROUNDS_QUICK if options.quick else ROUNDS)
        # The first round warms the page cache and is dropped.
        done = rounds(contenders, count + 1, options.work)[1:]
        document["figures"][f"noise {part}"] = noise(done)
        done = undisturbed(done)
        speeds = [{name: process.result["images_per_second"] for name, process in r.items()} for r in done]
        document["ours"][f"images_per_second {part}"] = estimate(s["lakeloop"] for s in speeds)
        document["peers"]["imagefolder"][f"images_per_second {part}"] = estimate(s["imagefolder"] for s in speeds)
        ratios = (s["lakeloop"] / s["imagefolder"] for s in speeds)
        document["ratios"][f"images_per_second {part}: lakeloop / imagefolder"] = estimate(ratios)
    return document


def lake(uri: str, workers: int, turn: int) -> dict[str, float]:
    """A contender: an epoch of the slice."""
    from lake import open_lake
    from training.data.loader import SliceStream, data_loader

    dataset = open_lake.open(uri).slice("all").dataset(transform=_transform())
    return _epoch(data_loader(SliceStream(dataset, seed=turn), batch_size=BATCH, num_workers=workers))


def folder(root: str, workers: int, turn: int) -> dict[str, float]:
    """A contender: an epoch of the folder."""
    from embeddings.embedders import torch_import

    torch, datasets = torch_import.torch(), torch_import.torchvision().datasets
    torch.manual_seed(turn)
    files = datasets.ImageFolder(root, transform=_transform())
    # The workers are forked, as is usual with ImageFolder.
    return _epoch(torch.utils.data.DataLoader(files, batch_size=BATCH, shuffle=True, num_workers=workers))


def _transform() -> Any:
    from embeddings.embedders import torch_import

    t = torch_import.torchvision().transforms
    return t.Compose([t.Resize(224), t.CenterCrop(224), t.ToTensor()])


def _epoch(batches: Iterable[Any]) -> dict[str, float]:
    came = iter(batches)
    next(came)
    started, images = perf_counter(), 0
    for pictures, _ in came:
        images += len(pictures)
    return {"images_per_second": images / (perf_counter() - started)}
