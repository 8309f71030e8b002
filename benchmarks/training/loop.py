"""`loop`: the whole loop on solar cells: accuracy on a new kind of cell, and on the known kind.

Each seed splits the 2,624 cells of elpv-dataset. Monocrystalline: half for training, half held out. Polycrystalline: 60
arrive in production; of the others half are held out, half are the pool of the second turn. Production also predicts
the held-out monocrystalline cells, but labels of held-out cells are never used to train or to choose.

v1 knows monocrystalline cells only. From one complaint an active search finds the new kind; its slice goes out as a
Label Studio task file and comes back labelled: v2. v2 predicts the pool; half of the labels of the second turn are its
least confident predictions, half are drawn: v3, with 400 labels in all. docs/loop.md says how SETTINGS were chosen.
Part `value` is in `label_value.py`.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.rounds import Options, estimate, say
from benchmarks.search import vectors
from benchmarks.training import label_value

if TYPE_CHECKING:
    from lake.open_lake import OpenLake
    from training.evaluation.evaluate import Evaluation
    from training.evaluation.gate import GateVerdict
    from training.registry.runs import Run

PARTS = ("story", "value")
SEEDS = 5
IN_STREAM, LABELS = 60, 400
MODEL = "cell-inspector"
SETTINGS: dict[str, Any] = {
    "kind": "probe", "regularisation": 0.01, "balance": "weights", "replay": 0.0, "validation": 0.0,
}  # fmt: skip
# Of balanced accuracy, on held-out monocrystalline cells.
MARGIN = 0.05
FIGURES = tuple(f"{kind}_v{number}" for kind in ("poly", "mono") for number in (1, 2, 3))
METRIC = "balanced_accuracy"
POLY = "polycrystalline"


@dataclass(frozen=True)
class Split:
    """A split of the data set: indices of cells, int (n,) each."""

    learned: np.ndarray
    held_out_mono: np.ndarray
    stream: np.ndarray
    pool: np.ndarray
    held_out_poly: np.ndarray


@dataclass(frozen=True)
class Cells:
    """Image ids, labels and kinds of the cells, (n,) each, in the order of the data set."""

    image_ids: np.ndarray
    labels: np.ndarray
    poly: np.ndarray

    def names(self, indices: np.ndarray) -> list[str]:
        names: list[str] = self.image_ids[indices].tolist()
        return names

    def labels_of(self) -> dict[str, str]:
        return dict(zip(self.image_ids.tolist(), self.labels.tolist(), strict=True))


def measure(options: Options) -> dict[str, Any]:
    """Balanced accuracy of three models on held-out cells of both kinds, gate outcomes, and the value of a label."""
    figures: dict[str, Any] = {}
    document: dict[str, Any] = {"ours": {}, "peers": {}, "ratios": {}, "figures": figures, "left_out": []}
    if "story" in options.parts:
        seeds = range(1 if options.quick else options.rounds or SEEDS)
        base, cells = build(options.work / "base")
        stories = []
        for seed in seeds:
            stories.append(story(base, options.work / f"seed-{seed}", cells, split(cells.poly, seed)))
            say(f"seed {seed}: {json.dumps(stories[-1])}")
            shutil.rmtree(options.work / f"seed-{seed}")
        figures |= summary(stories)
        document["ours"] = {name: estimate(numbers[name] for numbers in stories) for name in FIGURES}
        if options.quick:
            document["left_out"].append("quick: one seed")
    if "value" in options.parts:
        curves = label_value.measure(options)
        figures["label value"] = curves["figures"]
        document["left_out"] += curves["left_out"]
    return document


def summary(stories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and counts of gate outcomes."""
    names = [name for name in stories[0] if isinstance(stories[0][name], int | float)]
    means = {name: float(np.mean([figures[name] for figures in stories])) for name in names}
    outcomes = {turn: dict(Counter(figures["gate"][turn] for figures in stories)) for turn in stories[0]["gate"]}
    bare = [figures["without"][turn] for figures in stories for turn in figures["without"]]
    beyond = [figures for figures in bare if figures["mono_fall"] > MARGIN]
    return means | {
        "seeds": len(stories),
        "gate": outcomes,
        "without anti-forgetting": {
            "candidates": len(bare),
            "mono_fall": float(np.mean([figures["mono_fall"] for figures in bare])),
            "beyond the margin": len(beyond),
            "of them passed": sum(figures["outcome"] == "passed" for figures in beyond),
        },
    }


def split(poly: np.ndarray, seed: int) -> Split:
    """The split of one seed. `poly`: bool (n,)."""
    rng = np.random.default_rng(seed)
    ours, new = (rng.permutation(np.flatnonzero(kind)) for kind in (~poly, poly))
    half, rest = len(ours) // 2, new[IN_STREAM:]
    return Split(ours[:half], ours[half:], new[:IN_STREAM], rest[: len(rest) // 2], rest[len(rest) // 2 :])


def build(path: Path) -> tuple[Path, Cells]:
    """Makes a lake of all cells with vectors, without predictions and labels; every seed starts from a copy."""
    import lake
    from embeddings.backfill.vector_columns import store_vectors
    from embeddings.duplicates.threshold import save_threshold
    from embeddings.embedders import embedder as embedders
    from embeddings.embedders.specs import DEFAULT
    from lake import ids
    from lake.formats.item import Item
    from lake.ingest.ingest import ingest_items
    from search_app.demo.cells import COPIES_FROM, cells, folder

    known, all_cells = vectors.solar_cells(), cells()
    lk = lake.create(str(path), embedders=[DEFAULT], columns={"module_type": "string"})
    ingest_items(lk, [Item(cell.name, folder() / cell.path) for cell in all_cells])
    names = [ids.image_id((folder() / cell.path).read_bytes()) for cell in all_cells]
    record = lk.embedders()[0]
    record = embedders.bind(lk, record, embedders.for_lake(lk, record))
    store_vectors(lk, record.column, dict(zip(names, known.vectors, strict=True)))
    save_threshold(lk, COPIES_FROM)
    labels, poly = [cell.truth for cell in all_cells], [cell.kind == POLY for cell in all_cells]
    return path, Cells(np.array(names), np.array(labels), np.array(poly))


def story(base: Path, folder: Path, cells: Cells, split_: Split) -> dict[str, Any]:
    """Runs one seed on a copy of the base lake: figures of the three models, and of models without replay."""
    import lake
    from embeddings.duplicates import leak_guard
    from lake import slices
    from training.registry import promotion
    from training.registry.recipe import Recipe

    shutil.copytree(base, folder)
    lk, labels_of = lake.open(str(folder)), cells.labels_of()
    held_out = cells.names(np.concatenate([split_.held_out_mono, split_.held_out_poly]))
    _label(lk, {name: labels_of[name] for name in [*cells.names(split_.learned), *held_out]})
    leak_guard.create(lk, "mono-train", ids=cells.names(split_.learned), role="train")
    slices.create(lk, "mono", ids=cells.names(split_.held_out_mono), role="regression")
    slices.create(lk, "poly", ids=cells.names(split_.held_out_poly), role="evaluation")
    recipe = Recipe().changed(SETTINGS)
    runs = [_train(lk, recipe, ["mono-train"])]
    promotion.promote(lk, runs[0].id)
    _predict(lk, cells.names(np.concatenate([split_.held_out_mono, split_.stream])))

    looked, isolated = _isolate(lk, cells, _complaint(lk, cells, labels_of))
    _label_slice(lk, "new-kind", folder / "tasks-1", labels_of, search=isolated)
    without, gates = {}, {}
    for turn in ("v2", "v3"):
        if turn == "v3":
            _predict(lk, cells.names(split_.pool), runs[-1].id)
            spent = _size(lk, "new-kind")
            chosen = _second_turn(lk, cells.names(split_.pool), LABELS - spent)
            _label_slice(lk, "new-kind-2", folder / "tasks-2", labels_of, ids=chosen)
        fresh = ["new-kind"] if turn == "v2" else ["new-kind", "new-kind-2"]
        runs.append(_train(lk, recipe, fresh, ["mono-train"], runs[-1]))
        gates[turn] = _judge(lk, runs[-1], runs[-2])
        bare = _train(lk, recipe, fresh, [], runs[-2])
        without[turn] = _judge(lk, bare, runs[-2])
        if not gates[turn].blocks:
            promotion.promote(lk, runs[-1].id)
    values = {run.id: _figures(lk, run) for run in runs}
    out: dict[str, Any] = {}
    for number, run in enumerate(runs, start=1):
        out |= {f"poly_v{number}": values[run.id]["poly"], f"mono_v{number}": values[run.id]["mono"]}
    return out | {
        "labels_v2": _size(lk, "new-kind"),
        "labels_v3": _size(lk, "new-kind") + _size(lk, "new-kind-2"),
        "looked": looked,
        "gate": {turn: _mono(verdict).outcome for turn, verdict in gates.items()},
        "without": {
            turn: {"mono_fall": _mono(verdict).fall, "outcome": _mono(verdict).outcome}
            for turn, verdict in without.items()
        },
    }


# The turns -------------------------------------------------------------------------------------------------


def _train(
    lk: OpenLake, recipe: Any, train: Sequence[str], replay: Sequence[str] = (), parent: Run | None = None
) -> Run:
    from training.evaluation import evaluate
    from training.fit import train_model

    run = train_model.train(
        lk, train=train, replay=replay, recipe=recipe, name=MODEL, parent=parent.id if parent else None
    )
    evaluate.evaluate(lk, run.id)
    return run


def _predict(lk: OpenLake, image_ids: Sequence[str], run: str | None = None) -> None:
    """Production: the promoted version, or `run`, predicts these cells."""
    from lake import slices
    from training.inference import batch, served_model
    from training.registry import promotion

    version = served_model.served_version(lk, promotion.register(lk, run).id if run else MODEL)
    slice_ = slices.create(lk, "production", ids=image_ids)
    batch.run(
        lk, batch.stored(lk, slice=slice_.id), version, served_model.Predictor(lk, version.run), log=True, workers=1
    )


def _complaint(lk: OpenLake, cells: Cells, labels_of: dict[str, str]) -> str:
    """The functional cell of the new kind that was called a defect with the most confidence."""
    rows = lk.sql("SELECT image_id, label, confidence FROM predictions ORDER BY confidence DESC, image_id").to_pylist()
    new = {*cells.names(np.flatnonzero(cells.poly))}
    wrong = [row["image_id"] for row in rows if row["image_id"] in new and row["label"] != labels_of[row["image_id"]]]
    sound = [name for name in wrong if labels_of[name] == "functional"]
    return str((sound or wrong)[0])


def _isolate(lk: OpenLake, cells: Cells, example: str) -> tuple[int, str]:
    """Marks pages of an active search until it advises to stop. Returns the number of looks and the search."""
    from embeddings.search import saved_searches

    new = {*cells.names(np.flatnonzero(cells.poly))}
    search = saved_searches.start(lk, examples=[example], where=f"model = '{MODEL}'", name="complaint")
    while not search.progress().stop and (page := search.page()):
        search.mark(
            [image_id for image_id in page if image_id in new], [image_id for image_id in page if image_id not in new]
        )
    return search.progress().looked, search.id


def _second_turn(lk: OpenLake, pool: Sequence[str], count: int) -> list[str]:
    """Half of the images are those with the least confidence of v2, half are drawn by their hash."""
    rows = lk.sql(
        """SELECT image_id FROM predictions WHERE model_version = '2' AND image_id IN (SELECT unnest(?))
           ORDER BY confidence, image_id""",
        [[*pool]],
    )
    ranked: list[str] = rows["image_id"].to_pylist()
    return ranked[: count // 2] + sorted(ranked[count // 2 :])[: count - count // 2]


def _label_slice(lk: OpenLake, name: str, out: Path, labels_of: dict[str, str], **definition: Any) -> None:
    """Exports a slice as a task file, imports it with labels, and freezes it as a training slice."""
    from embeddings.duplicates import leak_guard
    from lake.labels import labelling_tools
    from lake.slices import export

    slice_, _ = leak_guard.create(lk, name, **definition)
    export.export(lk, slice_, out, "label-studio", predictions=MODEL)
    labelling_tools.import_annotations(lk, finished(out / "tasks.json", labels_of))
    leak_guard.create(lk, name, role="train", drop_leaks=True, **definition)


def finished(tasks: Path, labels_of: dict[str, str]) -> Path:
    """Writes the task file as Label Studio exports it once every image has a label; returns its path."""
    tasks_ = json.loads(tasks.read_text("utf-8"))
    moment = dt.datetime(2026, 10, 26, 9, 0, tzinfo=dt.UTC)
    for number, task in enumerate(tasks_):
        choice = {"choices": [labels_of[task["data"]["image_id"]]]}
        result = [{"type": "choices", "from_name": "classification", "to_name": "image", "value": choice}]
        annotation = {"id": number + 1, "completed_by": 1, "updated_at": moment.isoformat(), "result": result}
        task |= {"id": number + 1, "annotations": [annotation]}
    out = tasks.with_name("finished.json")
    out.write_text(json.dumps(tasks_), "utf-8")
    return out


# The figures -----------------------------------------------------------------------------------------------


def _judge(lk: OpenLake, candidate: Run, baseline: Run) -> GateVerdict:
    from training.evaluation import gate
    from training.evaluation.gate_policy import GatePolicy

    return gate.gate(lk, candidate.id, baseline.id, GatePolicy(metric=METRIC, margin=MARGIN))


def _mono(verdict: GateVerdict) -> Any:
    return next(slice_ for slice_ in verdict.slices if slice_.slice.startswith("mono@"))


def _figures(lk: OpenLake, run: Run) -> dict[str, float]:
    from training.evaluation import evaluate

    evaluation: Evaluation = evaluate.evaluate(lk, run.id)
    return {slice_.slice.partition("@")[0]: float(slice_.metrics[METRIC].value or 0.0) for slice_ in evaluation.slices}


def _size(lk: OpenLake, name: str) -> int:
    from lake import slices

    return slices.get(lk, name).size


def _label(lk: OpenLake, labels: dict[str, str]) -> None:
    """Stores the initial labels."""
    import pyarrow as pa

    from lake.storage import schema

    moment = dt.datetime(2026, 9, 1, tzinfo=dt.UTC)
    rows = [
        {"event_id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)), "image_id": name, "timestamp": moment,
         "task": "classification", "label": label, "origin": "human", "annotator": "laboratory"}
        for name, label in labels.items()
    ]  # fmt: skip
    lk.insert("labels", pa.Table.from_pylist(rows, schema=schema.LABELS.arrow()))
