"""The whole loop on real solar cells, in the order of the work: python examples/loop.py URL FOLDER

A model is trained on one kind of cell, production brings a kind it has never seen, a customer calls. The example then
finds the new kind, labels it, trains again and promotes the better model. The labels of the data set stand in for the
person who looks and labels. Everything goes through `lake.client.Client` to a server, which has the lake and trains:

    lakeloop init --embedder efficientnet-lite0 --lake cells.lake
    lakeloop serve --lake cells.lake

FOLDER gets the model cards. The script needs the extra demo, the server the extra train; it takes minutes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lake import ids
from lake.client import Client
from search_app.demo import cells
from search_app.demo.cells import SolarCell, Story

MODEL = "cell-inspector"
POLICY = {"metric": "balanced_accuracy", "margin": 0.05}
PROBE = {"kind": "probe", "regularisation": 0.01, "balance": "weights", "validation": 0.0}


def loop(client: Client, folder: Path, story: Story) -> dict[str, Any]:
    """Runs the loop in the server's new lake. Returns balanced accuracy by model and slice, and the gate outcomes."""
    # Ingest: labelled photographs for training and evaluation, each with a vector.
    arriving = [cell for cell, _ in story.production]
    later, evaluation = story.held_out[::2], story.held_out[1::2]
    training, regression = story.training[::2], story.training[1::2]
    cell_of = {_id(cell): cell for cell in [*story.training, *story.held_out, *arriving]}
    client.add_images([cells.folder() / cell.path for cell in cell_of.values()])
    _wait_for(client, "images", len(cell_of))
    client.add_labels([_label_of(cell) for cell in [*training, *regression, *evaluation]])
    client.start("embed").wait()
    client.set_duplicate_threshold("efficientnet-lite0", cells.COPIES_FROM)
    client.slice("known-kind").create(ids=_ids(regression), role="regression")
    client.slice("new-kind-held-out").create(ids=_ids(evaluation), role="evaluation")
    client.slice("first").create(ids=_ids(training), role="train")

    # Version 1 goes into production and predicts.
    first = client.train(["first"], recipe=PROBE, model=MODEL).wait()["run"]
    results = {"v1": _figures(client, first)}
    client.promote(first)
    _predict(client, arriving)

    # A complaint about the most confident wrong defect.
    query = "SELECT * FROM predictions WHERE label = 'defect' ORDER BY confidence DESC, image_id"
    mistakes = [row for row in client.sql(query).to_pylist() if cell_of[row["image_id"]].truth == "functional"]
    mistake = next((row for row in mistakes if _is_new(cell_of[row["image_id"]])), mistakes[0])
    client.feedback(mistake["prediction_id"], "incorrect", "Why was this thrown away?")

    # Isolate: search by that example, page by page, until the search advises to stop. The images found are a slice.
    search = client.isolate([mistake["image_id"]], where=f"model = '{MODEL}'")
    state = search.state()
    while not state.stop and state.page:
        new = [image_id for image_id in state.page if _is_new(cell_of[image_id])]
        state = search.mark(yes=new, no=[image_id for image_id in state.page if image_id not in new])
    _label(client, cell_of, "new-kind", search=search.id)

    # Train on old and new images, evaluate on every slice, run the gate, write the card, promote.
    results["v2"] = _retrain(client, folder, ["new-kind"], first)

    # Predict: the new version predicts newer images; its least confident predictions are the next slice.
    _predict(client, later)
    query = (
        "SELECT image_id FROM predictions WHERE image_id IN (SELECT unnest(?)) ORDER BY confidence, image_id LIMIT 340"
    )
    least_confident = client.sql(query, [_ids(later)])
    _label(client, cell_of, "new-kind-2", ids=least_confident["image_id"].to_pylist())
    results["v3"] = _retrain(client, folder, ["new-kind", "new-kind-2"], results["v2"]["run"])
    return results


def _label(client: Client, cell_of: dict[str, SolarCell], name: str, **definition: Any) -> None:
    """Saves a slice, labels its images (what a person does), and saves its next version for training."""
    found = client.slice(name).create(**definition)
    client.add_labels([_label_of(cell_of[image_id]) for image_id in found.members()])
    client.slice(name).create(role="train", drop_leaks=True, **definition)


def _retrain(client: Client, folder: Path, train: list[str], before: str) -> dict[str, Any]:
    run = client.train(train, replay=["first"], recipe=PROBE, model=MODEL, parent=before).wait()["run"]
    figures = _figures(client, run)
    verdict = client.gate(run, before, policy=POLICY).wait()
    # Few images cannot prove a small margin: then a person decides and gives a reason.
    failed = verdict["outcome"] == "failed"
    if not failed:
        reason = "no measurable fall on the known kind" if verdict["blocks"] else None
        client.promote(run, force=verdict["blocks"], reason=reason)
    (folder / f"card-{run}.md").write_text(client.card(run))
    return figures | {"gate": verdict["outcome"], "promoted": not failed}


def _predict(client: Client, photographs: Sequence[SolarCell]) -> None:
    """What a production line does: each photograph is predicted by the promoted version, and the prediction logged."""
    before = client.sql("SELECT count(*) AS n FROM predictions")["n"][0].as_py()
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda cell: client.predict(cells.folder() / cell.path, model=MODEL), photographs):
            pass
    client.flush()
    _wait_for(client, "predictions", before + len(photographs))


def _wait_for(client: Client, table: str, count: int) -> None:
    """Events are safe when the server has answered, and in the lake within seconds."""
    while client.sql(f"SELECT count(*) AS n FROM {table}")["n"][0].as_py() < count:
        time.sleep(0.2)


def _figures(client: Client, run: str) -> dict[str, Any]:
    slices = client.evaluate(run).wait()["slices"]
    return {"run": run} | {s["slice"].partition("@")[0]: s["metrics"]["balanced_accuracy"]["value"] for s in slices}


def _label_of(cell: SolarCell) -> dict[str, str]:
    return {"image_id": _id(cell), "label": cell.truth}


def _ids(photographs: Sequence[SolarCell]) -> list[str]:
    return [_id(cell) for cell in photographs]


def _id(cell: SolarCell) -> str:
    return ids.image_id((cells.folder() / cell.path).read_bytes())


def _is_new(cell: SolarCell) -> bool:
    return cell.kind == "polycrystalline"


if __name__ == "__main__":
    url, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with Client(url) as client:
        results = loop(client, folder, cells.make_story(cells.cells()))
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
