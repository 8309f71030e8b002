"""`shapes`: accuracy and minutes of small networks for segmentation and detection on generated images.

Images are drawn (`benchmarks/training/shapes_data.py`) from photographs, stored in a lake with their masks and boxes as
labels, and trained on from slices with the usual trainer. Held-out images are drawn from other photographs.

- `segmentation`: `unet-lite0`; mIoU with background; goal 0.9.
- `detection`: `centernet-lite0`; mAP at an overlap of one half; goal 0.9.

Both must finish within 15 minutes on two cores. For comparison: a classifier of the colour of single pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness import data as benchmark_data
from benchmarks.harness.contender import Stopwatch
from benchmarks.harness.rounds import Contender, Options, run, say
from benchmarks.training import shapes_data

PARTS = ("segmentation", "detection")
PHOTOGRAPHS, HELD_OUT_PHOTOGRAPHS = 500, 100
IMAGES, IMAGES_QUICK = 8_000, 600
VALIDATION, HELD_OUT = 200, 400
MINUTES = 15.0
GOALS = {"segmentation": ("miou", 0.9), "detection": ("map_50", 0.9)}
# Settings of all recipes; shapes may have any orientation.
_COMMON: dict[str, Any] = {
    "size": shapes_data.SIDE, "batch": 16, "rate": 3e-3, "backbone_rate": 0.5, "warmup": 0.5, "flip": "both",
    "turn": True, "crop": 1.0, "stretch": 0.0,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "segmentation": {"task": "segmentation", "architecture": "unet-lite0", "epochs": 8, **_COMMON},
    "detection": {"task": "detection", "architecture": "centernet-lite0", "epochs": 3, **_COMMON},
}


def measure(options: Options) -> dict[str, Any]:
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": {}, "left_out": []}
    count = PHOTOGRAPHS + HELD_OUT_PHOTOGRAPHS
    folder = benchmark_data.photographs(benchmark_data.folder(options.data), options.work, count)
    images = IMAGES_QUICK if options.quick else IMAGES
    say(f"drawing {images} images for training, {VALIDATION} for validation and {HELD_OUT} held out")
    arguments = {"folder": str(folder), "uri": str(options.work / "shapes.lake"), "images": images}
    drawn = run(Contender("drawing", "benchmarks.training.shapes:fill", arguments), options.work).result
    document["figures"]["colour_alone"] = drawn
    for part in options.parts:
        recipe = RECIPES[part] | ({"epochs": 2} if options.quick else {})
        say(f"{part}: {recipe['architecture']}, {recipe['epochs']} epochs")
        process = run(
            Contender(part, "benchmarks.training.shapes:learn", {"uri": arguments["uri"], "recipe": recipe}),
            options.work,
        )
        metric, goal = GOALS[part]
        document["ours"][part] = process.result | {
            "cores_others_took": process.foreign_cores,
            "peak_rss": process.peak_rss,
        }
        document["figures"][metric] = process.result["held_out"][metric]
        document["figures"][f"{metric}_goal"] = goal
        document["figures"][f"{part}_minutes"] = process.result["seconds"] / 60
        document["figures"][f"{part}_minutes_most"] = MINUTES
    if options.quick:
        document["left_out"].append(f"quick: {images} images and 2 epochs; the goals are for the full run")
    return document


def fill(folder: str, uri: str, images: int, turn: int) -> dict[str, float]:
    """A contender: makes the lake with its three slices; returns the figures of `colour_alone` on held-out images."""
    import lake

    photographs = shapes_data.photographs_in(Path(folder))
    cut = len(photographs) * PHOTOGRAPHS // (PHOTOGRAPHS + HELD_OUT_PHOTOGRAPHS)
    lk = lake.create(uri)
    train = [*shapes_data.drawings(photographs[:cut], images, seed=1)]
    held_out = [*shapes_data.drawings(photographs[cut:], HELD_OUT, seed=2)]
    shapes_data.bring_in(lk, train, "shapes")
    shapes_data.bring_in(lk, [*shapes_data.drawings(photographs[:cut], VALIDATION, seed=3)], "shapes-validation")
    shapes_data.bring_in(lk, held_out, "shapes-held-out")
    return shapes_data.colour_alone(train, held_out)


def learn(uri: str, recipe: dict[str, Any], turn: int) -> dict[str, Any]:
    """A contender: one training run; returns its held-out metrics and its seconds."""
    import lake
    from training.fit.train_model import train
    from training.registry import runs
    from training.registry.recipe import Recipe

    lk = lake.open(uri)

    def tell(now: dict[str, Any]) -> None:
        if "metrics" in now:
            metrics = {r["metric"]: r["value"] for r in now["metrics"] if r["split"] == "validation" and r["value"]}
            say(f"  epoch {now['epoch']}: loss {now['loss']:.3f}, "
                + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items() if k in ("miou", "map_50", "map")))  # fmt: skip

    with Stopwatch() as watch:
        done = train(lk, train=["shapes"], validation=["shapes-validation"], test=["shapes-held-out"],
                     recipe=Recipe.of(recipe), name="shapes", device="cpu", progress=tell)  # fmt: skip
    rows = [row for row in runs.metrics(lk, done.id) if row["split"] == "test"]
    return {"held_out": {row["metric"]: row["value"] for row in rows}, "run": done.id, **watch.figures()}
