"""The whole loop on real solar cells, in the order of the work: python examples/loop.py FOLDER

A model is trained on one kind of cell, production brings a kind it has never seen, a customer calls. What follows is
what lakeloop is for. A person's eyes and the laboratory's labels are played by the data set; everything else is the
public API. Needs the extras demo and train; three minutes on two cores.
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
from search_app.demo.stream import Saying, bring_in
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


def loop(place: Path, story: Story) -> dict[str, Any]:
    """Runs the loop in the new lake at `place`; balanced accuracy by model and slice, and what the gate said."""
    # Ingest: photographs with labels, and what every model will be judged by. Each gets a vector.
    lk = lake.create(str(place), embedders=["efficientnet-lite0"])
    arriving = [cell for cell, _ in story.production]
    later, judged = story.held_out[::2], story.held_out[1::2]
    learned, kept = story.training[::2], story.training[1::2]
    ingest_items(lk, [_item(cell, known=cell not in arriving and cell not in later)
                      for cell in [*story.training, *story.held_out, *arriving]])  # fmt: skip
    record = embedders.record_of(lk, None)
    backfill(lk, record, embedders.for_lake(lk, record))
    save_threshold(lk, cells.COPIES_FROM)
    named = {_id(cell): cell for cell in [*story.training, *story.held_out, *arriving]}
    leak_guard.create(lk, "known-kind", ids=[_id(cell) for cell in kept], role="regression")
    leak_guard.create(lk, "new-kind-held-out", ids=[_id(cell) for cell in judged], role="evaluation")
    leak_guard.create(lk, "first", ids=[_id(cell) for cell in learned], role="train")

    # Version 1 goes into production, and answers.
    first = train_model.train(lk, train=["first"], recipe=PROBE, name=MODEL)
    evaluate.evaluate(lk, first.id)
    promotion.promote(lk, first.id)
    _answer(lk, "production", arriving)

    # A complaint: the answer it was surest of, about a sound cell that was thrown away.
    rows = lk.sql("SELECT * FROM answers WHERE label = 'defect' ORDER BY confidence DESC, image_id").to_pylist()
    wrong = [row for row in rows if named[row["image_id"]].truth == "functional"]
    call = next((row for row in wrong if _is_new(named, row["image_id"])), wrong[0])
    about = {"prediction_id": call["prediction_id"], "verdict": "incorrect", "comment": "Why was this thrown away?"}
    bring_in(lk, [Saying("feedback", named[call["image_id"]].path, call["image_id"], about)])

    # Isolate: search by that example, page by page, until the search advises to stop. The slice is what was found.
    search = saved_searches.start(lk, examples=[call["image_id"]], where=f"model = '{MODEL}'")
    while not search.progress().stop and (page := search.page()):
        new = [one for one in page if _is_new(named, one)]
        search.mark(yes=new, no=[one for one in page if one not in new])
    _labelled(lk, named, "new-kind", search=search.id)

    # Train with the old images beside the new ones, judge on every slice, gate, card, promote.
    results = {"v1": _figures(lk, first.id), "v2": _turn(lk, place, ["new-kind"], first.id)}

    # Predict: what came since is answered by the new version, and its least sure answers are the next slice.
    _answer(lk, "later", later)
    least = lk.sql(
        "SELECT image_id FROM answers WHERE image_id IN (SELECT unnest(?)) ORDER BY confidence, image_id LIMIT 340",
        [[_id(cell) for cell in later]],
    )
    _labelled(lk, named, "new-kind-2", ids=least["image_id"].to_pylist())
    results["v3"] = _turn(lk, place, ["new-kind", "new-kind-2"], results["v2"]["run"])
    return results


def _labelled(lk: lake.OpenLake, named: dict[str, Any], name: str, **how: Any) -> None:
    """A slice goes out as Label Studio tasks and comes back labelled; its next version has the labels."""
    made, _ = leak_guard.create(lk, name, **how)
    out = Path(lk.uri).with_name(f"{name}-tasks")
    export.export(lk, made, out, "label-studio", predictions=MODEL)
    tasks = json.loads((out / "tasks.json").read_text())
    for task in tasks:  # what a person does in Label Studio
        said = {"type": "choices", "value": {"choices": [named[task["data"]["image_id"]].truth]}}
        task["annotations"] = [{"completed_by": 1, "result": [said]}]
    (out / "finished.json").write_text(json.dumps(tasks))
    labelling_tools.import_annotations(lk, out / "finished.json")
    leak_guard.create(lk, name, role="train", drop_leaks=True, **how)


def _turn(lk: lake.OpenLake, place: Path, train: list[str], before: str) -> dict[str, Any]:
    run = train_model.train(lk, train=train, replay=["first"], recipe=PROBE, name=MODEL, parent=before)
    evaluate.evaluate(lk, run.id)
    verdict = gate.gate(lk, run.id, before, POLICY)
    # Few images cannot prove a small margin: a person decides then, and says why.
    failed = verdict.outcome == "failed"
    if not failed:
        why = "the known kind has not fallen as far as anybody can see" if verdict.blocks else None
        promotion.promote(lk, run.id, force=verdict.blocks, reason=why)
    card.write(card.render(lk, run.id), place.with_name(f"card-{run.id}"))
    return _figures(lk, run.id) | {"gate": verdict.outcome, "promoted": not failed}


def _answer(lk: lake.OpenLake, name: str, some: list[cells.Cell]) -> None:
    made, _ = leak_guard.create(lk, name, ids=[_id(cell) for cell in some])
    who = served_model.source(lk, MODEL)
    batch.run(lk, batch.stored(lk, slice=made.id), who, served_model.Answering(lk, who.run), log=True)


def _figures(lk: lake.OpenLake, run: str) -> dict[str, Any]:
    found = evaluate.evaluate(lk, run).slices
    return {"run": run} | {one.slice.partition("@")[0]: one.metrics["balanced_accuracy"].value for one in found}


def _item(cell: cells.Cell, known: bool) -> Item:
    return Item(
        cell.name, cells.folder() / cell.path, read_annotations=partial(of_class, cell.truth) if known else None
    )


def _id(cell: cells.Cell) -> str:
    return ids.image_id((cells.folder() / cell.path).read_bytes())


def _is_new(named: dict[str, Any], image_id: str) -> bool:
    return bool(named[image_id].kind == "polycrystalline")


if __name__ == "__main__":
    told = loop(Path(sys.argv[1]) / "loop.lake", cells.cast(cells.cells()))
    sys.stdout.write(json.dumps(told, indent=2) + "\n")
