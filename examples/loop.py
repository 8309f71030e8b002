"""The whole loop on real solar cells, in the order of the work: python examples/loop.py FOLDER

A model is trained on one kind of cell, production brings a kind it has never seen, a customer calls. The example then
finds the new kind, labels it, trains again and promotes the better model. The labels of the data set stand in for the
person who looks and labels; everything else is the public API. It needs the extras demo and train and takes three
minutes on two cores.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lake
from embeddings.backfill.backfill import backfill
from embeddings.duplicates import leak_guard
from embeddings.duplicates.threshold import save_threshold
from embeddings.embedders import embedder as embedders
from embeddings.search import saved_searches
from lake import ids
from lake.formats.imagefolder import of_class
from lake.formats.item import Item
from lake.ingest.ingest import ingest_items
from lake.labels import labelling_tools
from lake.slices import export
from search_app.demo import cells
from search_app.demo.cells import Story
from search_app.demo.stream import DemoEvent, ingest
from training.card import card
from training.evaluation import evaluate, gate
from training.evaluation.gate_policy import GatePolicy
from training.fit import train_model
from training.inference import batch, served_model
from training.registry import promotion
from training.registry.recipe import Recipe

MODEL = "cell-inspector"
POLICY = GatePolicy(metric="balanced_accuracy", margin=0.05)
PROBE = Recipe(kind="probe", regularisation=0.01, balance="weights", validation=0.0)


def loop(folder: Path, story: Story) -> dict[str, Any]:
    """Runs the loop in a new lake at `folder`. Returns balanced accuracy by model and slice, and the gate outcomes."""
    # Ingest: labelled photographs for training and evaluation, each with a vector.
    lk = lake.create(str(folder), embedders=["efficientnet-lite0"])
    arriving = [cell for cell, _ in story.production]
    later, evaluation = story.held_out[::2], story.held_out[1::2]
    training, regression = story.training[::2], story.training[1::2]
    ingest_items(lk, [_item(cell, labelled=cell not in arriving and cell not in later)
                      for cell in [*story.training, *story.held_out, *arriving]])  # fmt: skip
    record = embedders.record_of(lk, None)
    backfill(lk, record, embedders.for_lake(lk, record))
    save_threshold(lk, cells.COPIES_FROM)
    cell_of = {_id(cell): cell for cell in [*story.training, *story.held_out, *arriving]}
    leak_guard.create(lk, "known-kind", ids=[_id(cell) for cell in regression], role="regression")
    leak_guard.create(lk, "new-kind-held-out", ids=[_id(cell) for cell in evaluation], role="evaluation")
    leak_guard.create(lk, "first", ids=[_id(cell) for cell in training], role="train")

    # Version 1 goes into production and predicts.
    first = train_model.train(lk, train=["first"], recipe=PROBE, name=MODEL)
    evaluate.evaluate(lk, first.id)
    promotion.promote(lk, first.id)
    _predict(lk, "production", arriving)

    # A complaint about the most confident wrong defect.
    rows = lk.sql("SELECT * FROM predictions WHERE label = 'defect' ORDER BY confidence DESC, image_id").to_pylist()
    mistakes = [row for row in rows if cell_of[row["image_id"]].truth == "functional"]
    mistake = next((row for row in mistakes if _is_new(cell_of, row["image_id"])), mistakes[0])
    verdict = {
        "prediction_id": mistake["prediction_id"],
        "verdict": "incorrect",
        "comment": "Why was this thrown away?",
    }
    ingest(lk, [DemoEvent("feedback", cell_of[mistake["image_id"]].path, mistake["image_id"], verdict)])

    # Isolate: search by that example, page by page, until the search advises to stop. The images found are a slice.
    search = saved_searches.start(lk, examples=[mistake["image_id"]], where=f"model = '{MODEL}'")
    while not search.progress().stop and (page := search.page()):
        new = [image_id for image_id in page if _is_new(cell_of, image_id)]
        search.mark(yes=new, no=[image_id for image_id in page if image_id not in new])
    _label(lk, cell_of, "new-kind", search=search.id)

    # Train on old and new images, evaluate on every slice, run the gate, write the card, promote.
    results = {"v1": _figures(lk, first.id), "v2": _retrain(lk, folder, ["new-kind"], first.id)}

    # Predict: the new version predicts newer images; its least confident predictions are the next slice.
    _predict(lk, "later", later)
    least_confident = lk.sql(
        "SELECT image_id FROM predictions WHERE image_id IN (SELECT unnest(?)) ORDER BY confidence, image_id LIMIT 340",
        [[_id(cell) for cell in later]],
    )
    _label(lk, cell_of, "new-kind-2", ids=least_confident["image_id"].to_pylist())
    results["v3"] = _retrain(lk, folder, ["new-kind", "new-kind-2"], results["v2"]["run"])
    return results


def _label(lk: lake.OpenLake, cell_of: dict[str, Any], name: str, **definition: Any) -> None:
    """Exports a slice as Label Studio tasks, imports them with labels, and saves its next version for training."""
    slice_, _ = leak_guard.create(lk, name, **definition)
    out = Path(lk.uri).with_name(f"{name}-tasks")
    export.export(lk, slice_, out, "label-studio", predictions=MODEL)
    tasks = json.loads((out / "tasks.json").read_text())
    for task in tasks:  # what a person does in Label Studio
        choice = {"type": "choices", "value": {"choices": [cell_of[task["data"]["image_id"]].truth]}}
        task["annotations"] = [{"completed_by": 1, "result": [choice]}]
    (out / "finished.json").write_text(json.dumps(tasks))
    labelling_tools.import_annotations(lk, out / "finished.json")
    leak_guard.create(lk, name, role="train", drop_leaks=True, **definition)


def _retrain(lk: lake.OpenLake, folder: Path, train: list[str], before: str) -> dict[str, Any]:
    run = train_model.train(lk, train=train, replay=["first"], recipe=PROBE, name=MODEL, parent=before)
    evaluate.evaluate(lk, run.id)
    verdict = gate.gate(lk, run.id, before, POLICY)
    # Few images cannot prove a small margin: then a person decides and gives a reason.
    failed = verdict.outcome == "failed"
    if not failed:
        reason = "no measurable fall on the known kind" if verdict.blocks else None
        promotion.promote(lk, run.id, force=verdict.blocks, reason=reason)
    card.write(card.render(lk, run.id), folder.with_name(f"card-{run.id}"))
    return _figures(lk, run.id) | {"gate": verdict.outcome, "promoted": not failed}


def _predict(lk: lake.OpenLake, name: str, photographs: list[cells.SolarCell]) -> None:
    slice_, _ = leak_guard.create(lk, name, ids=[_id(cell) for cell in photographs])
    version = served_model.served_version(lk, MODEL)
    batch.run(lk, batch.stored(lk, slice=slice_.id), version, served_model.Predictor(lk, version.run), log=True)


def _figures(lk: lake.OpenLake, run: str) -> dict[str, Any]:
    slices = evaluate.evaluate(lk, run).slices
    return {"run": run} | {s.slice.partition("@")[0]: s.metrics["balanced_accuracy"].value for s in slices}


def _item(cell: cells.SolarCell, labelled: bool) -> Item:
    return Item(
        cell.name, cells.folder() / cell.path, read_annotations=partial(of_class, cell.truth) if labelled else None
    )


def _id(cell: cells.SolarCell) -> str:
    return ids.image_id((cells.folder() / cell.path).read_bytes())


def _is_new(cell_of: dict[str, Any], image_id: str) -> bool:
    return bool(cell_of[image_id].kind == "polycrystalline")


if __name__ == "__main__":
    results = loop(Path(sys.argv[1]) / "loop.lake", cells.make_story(cells.cells()))
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
