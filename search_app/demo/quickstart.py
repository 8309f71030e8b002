"""Builds the demo lake: a solar cell inspection model meets a kind of cell that it has never seen.

The data are real (`search_app/demo/cells.py`), and so are the model (a logistic head on the lake's embedder) and its
predictions. The model is trained on half of the monocrystalline cells. Production is the other half over six weeks; in
the last two weeks sixty polycrystalline cells come along. A person checks one prediction in three at random; a customer
calls about another one. Everything is seeded: every machine builds the same lake.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lake.errors import BadInput
from search_app.demo import stream
from search_app.demo.cells import COPIES_FROM, NEW_KIND_IN_PRODUCTION, WEEKS, Story, cells, folder, make_story
from search_app.demo.stream import DemoEvent

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.open_lake import OpenLake

REGULARISATION = 0.01

LICENCE = (
    "data: elpv-dataset, CC BY-NC-SA 4.0 (non-commercial); Buerhop-Lutz et al. 2018, Deitsch et al. 2019 and 2021\n"
    "weights: EfficientNet-Lite0, Apache-2.0"
)


def quickstart(uri: str, live: bool = False, story: Story | None = None) -> dict[str, Any]:
    """Builds the demo lake at `uri` unless it exists, prints what it did to stderr, and returns its numbers.

    With `live` the newest cells arrive later at the server, see `search_app/demo/replay.py`; otherwise they are in the
    lake when it returns. The default `story` is made from the whole data set. Raises BadInput if there is something
    else at `uri`, MissingExtra if the packages of the demo are not installed.
    """
    lake_folder = Path(uri)
    record = lake_folder / "demo.json"
    if record.is_file():
        facts: dict[str, Any] = json.loads(record.read_text())
    elif lake_folder.exists() and any(lake_folder.iterdir()):
        raise BadInput(f"{uri} exists and is not the demo lake; choose another folder with --lake")
    else:
        half = lake_folder.with_name(lake_folder.name + ".part")
        shutil.rmtree(half, ignore_errors=True)
        facts = _build(str(half), story or make_story(cells()), live)
        (half / record.name).write_text(json.dumps(facts))
        half.rename(lake_folder)
    if not live and stream.pending(lake_folder):
        _ingest_pending(lake_folder)
    arriving = sum(event.kind == "prediction" for event in stream.pending(lake_folder))
    facts |= {"lake": str(uri), "arriving": arriving}
    _print_story(facts)
    return facts


def _build(uri: str, story: Story, live: bool) -> dict[str, Any]:
    import lake
    from embeddings.backfill.backfill import backfill
    from embeddings.backfill.vector_columns import store_vectors
    from embeddings.duplicates.threshold import save_threshold
    from embeddings.embedders import embedder as embedders
    from embeddings.embedders.specs import DEFAULT
    from lake.formats.imagefolder import of_class
    from lake.formats.item import Item
    from lake.ingest.ingest import ingest_items
    from training.models import probe

    lk = lake.create(uri, embedders=[DEFAULT], columns={"module_type": "string"})
    record = embedders.record_of(lk, None)
    _say("1/5  labels: ingest half of the monocrystalline cells with their labels")
    readers = {c: partial(of_class, c.truth, None, None) for c in story.training}
    ingest_items(lk, (Item(c.name, folder() / c.path, read_annotations=reader) for c, reader in readers.items()))
    _say("2/5  embeddings: EfficientNet-Lite0 computes a vector for every image")
    model = embedders.for_lake(lk, record, images=len(story.training) + len(story.production))
    backfill(lk, record, model)
    save_threshold(lk, COPIES_FROM)
    _say("3/5  first model: train a logistic head on these vectors")
    vectors, labels = _labelled_vectors(lk)
    head = probe.fit(vectors, labels, REGULARISATION)
    _say(f"4/5  production: {len(story.production)} cells of {WEEKS} weeks are predicted and logged")
    served = _serve_model(model, story)
    events = stream.production(story, head.classes, head.probabilities(served))
    later = stream.ARRIVING + 1 if live else 0  # with the customer's call
    before, arriving = events[: len(events) - later], events[len(events) - later :]
    stream.ingest(lk, before)
    seen = [event.image_id for event in events if event.kind == "prediction"]
    # The serving process already has the vectors; the server computes those of cells that arrive later.
    store_vectors(lk, record.column, dict(zip(seen, served, strict=True)))
    stream.label(lk, before)
    if arriving:
        stream.save_pending(Path(uri), arriving)
    _say("5/5  clusters: group the images of production")
    tree = stream.cluster_production(lk)
    _write_test_set(Path(uri), story)
    complaint = next(event.image_id for event in events if event.kind == "feedback")
    return _numbers(story, events) | {"tree": tree, "complaint": complaint, "held_out": len(story.held_out)}


def _ingest_pending(lake_folder: Path) -> None:
    """Ingests the events that an interrupted live stream has not sent."""
    import lake
    from embeddings.backfill.backfill import backfill
    from embeddings.embedders import embedder as embedders

    lk = lake.open(str(lake_folder))
    _say("ingest the cells of the interrupted live stream")
    stream.ingest(lk, stream.pending(lake_folder))
    record = embedders.record_of(lk, None)
    backfill(lk, record, embedders.for_lake(lk, record, images=stream.ARRIVING))
    stream.finish(lk, lake_folder)


def _labelled_vectors(lk: OpenLake) -> tuple[np.ndarray, list[str]]:
    from embeddings.embedders import embedder as embedders
    from lake.storage.vectors import image_vectors

    record = embedders.record_of(lk, None)
    labels = lk.sql("SELECT image_id, label FROM labels_current ORDER BY image_id")
    _, matrix = image_vectors(lk, record, labels["image_id"].to_pylist())  # both ordered by id
    return matrix, labels["label"].to_pylist()


def _serve_model(model: Embedder, story: Story) -> np.ndarray:
    """The vectors that the serving process computes, one for each cell of production."""
    from embeddings.embedders.preprocess import prepare

    files = [(folder() / cell.path).read_bytes() for cell, _ in story.production]
    embedded = model.embed_batch([prepare(data, model.spec.preprocessing) for data in files])
    assert len(embedded.kept) == len(files)
    return embedded.vectors


def _numbers(story: Story, events: Sequence[DemoEvent]) -> dict[str, Any]:
    from training.metrics.classification_metrics import accuracy, balanced_accuracy

    predictions = [event.event for event in events if event.kind == "prediction"]
    kinds = np.array([cell.kind for cell, _ in story.production])
    labels = np.array([cell.truth for cell, _ in story.production])
    predicted = np.array([prediction["label"] for prediction in predictions])
    confidence = np.array([prediction["confidence"] for prediction in predictions])
    numbers: dict[str, Any] = {}
    for kind in ("monocrystalline", "polycrystalline"):
        part = kinds == kind
        t, p = labels[part].tolist(), predicted[part].tolist()
        numbers[kind] = {
            "n": len(t),
            "balanced_accuracy": round(balanced_accuracy(p, t), 3),
            "accuracy": round(accuracy(p, t), 3),
            "majority_baseline": round(max(t.count("defect"), t.count("functional")) / len(t), 3),
            "called_defect": round(p.count("defect") / len(p), 3),
            "confidence": round(float(confidence[part].mean()), 3),
        }
    least = np.argsort(confidence, kind="stable")[:NEW_KIND_IN_PRODUCTION]
    numbers["least_confident_that_are_new"] = int((kinds[least] == "polycrystalline").sum())
    numbers["new_share"] = round(float((kinds == "polycrystalline").mean()), 3)
    return numbers


def _write_test_set(lake_folder: Path, story: Story) -> None:
    """Writes the held-out cells for evaluating the next model: file names only, the images stay in their package."""
    lines = ["image,label,module_type", *(f"{c.name},{c.truth},{c.kind}" for c in story.held_out)]
    (lake_folder / "held-out.csv").write_text("\n".join(lines) + "\n")


def _print_story(facts: dict[str, Any]) -> None:
    mono, poly = facts["monocrystalline"], facts["polycrystalline"]
    # The command as you called it, so that you can paste the lines: .venv/bin/lakeloop after `make demo`.
    command = sys.argv[0] if Path(sys.argv[0]).name == "lakeloop" else "lakeloop"
    titles = ("cells", "balanced acc.", "accuracy", "majority class", "called defect", "confidence")
    head = f"{'':<24}" + "".join(f"{t:>{w}}" for t, w in zip(titles, (6, 15, 10, 16, 15, 12), strict=True))
    _say("", head)
    for name, row in (("monocrystalline", mono), ("polycrystalline (new)", poly)):
        _say(
            f"{name:<24}{row['n']:>6}{row['balanced_accuracy']:>15.2f}{row['accuracy']:>10.2f}"
            f"{row['majority_baseline']:>16.2f}{row['called_defect']:>15.0%}{row['confidence']:>12.2f}"
        )
    _say(
        "",
        "The model calls nearly every cell of the new kind a defect, with high confidence. Low confidence is no hint:",
        f"of its {poly['n']} least confident predictions {facts['least_confident_that_are_new']} are of the new kind "
        f"(by chance: {facts['new_share'] * poly['n']:.0f}). Random checks, complaints and clusters show it.",
        "",
        "In the app: the first card of the Overview shows the failure. Open the cluster below it, save it as a slice.",
    )
    if facts["arriving"]:
        _say(
            f"The newest {facts['arriving']} cells arrive while you watch, two a second, through lake.client, and a "
            "customer calls:",
            "see “Arriving” at the top of the Overview, then its card “What customers report”.",
        )
    else:
        _say("A customer has called about one of the cells: see Overview, “What customers report”.")
    _say(
        "Or on the command line, from the cell of the complaint:",
        "",
        f"  {command} search --lake {facts['lake']} --id {facts['complaint']} -k 12 --column module_type",
        f'  {command} cluster --lake {facts["lake"]} --where "model IS NOT NULL"',
        f'  {command} sql --lake {facts["lake"]} "SELECT module_type, count(*) n, avg(correct::int) accuracy'
        ' FROM predictions_labelled WHERE correct IS NOT NULL GROUP BY ALL"',
        "",
        LICENCE,
    )


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)  # noqa: T201 - the demo prints to the terminal
