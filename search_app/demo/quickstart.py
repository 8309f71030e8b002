"""The demo story: a solar cell inspection model meets a product line it has never seen.

Real data (`search_app/demo/cells.py`), a real model (a logistic head on the lake's own embedder), real answers. A first
model is trained on half of the monocrystalline cells. Production is the other half over six weeks; in the last two,
sixty polycrystalline cells come along. One answer in three is checked by a person, at random; a customer calls about
another. Everything is seeded: two machines build the same lake.
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
from search_app.demo.cells import COPIES_FROM, NEW_KIND_IN_PRODUCTION, WEEKS, Story, cast, cells, folder
from search_app.demo.stream import Saying

if TYPE_CHECKING:
    from embeddings.embedders.embedder import Embedder
    from lake.open_lake import OpenLake

REGULARISATION = 0.01

LICENCE = (
    "data: elpv-dataset, CC BY-NC-SA 4.0 (non-commercial); Buerhop-Lutz et al. 2018, Deitsch et al. 2019 and 2021\n"
    "weights: EfficientNet-Lite0, Apache-2.0"
)


def quickstart(uri: str, live: bool = False, story: Story | None = None) -> dict[str, Any]:
    """Builds the demo lake at `uri` unless it is there, tells the story on stderr, returns its numbers.

    With `live` the newest cells are left to arrive at the server, see `search_app/demo/replay.py`; otherwise they are
    in the lake when it returns. `story` is dealt from the whole data set by default.
    Raises BadInput when something else is at `uri`, MissingExtra when the demo's packages are not installed.
    """
    place = Path(uri)
    record = place / "demo.json"
    if record.is_file():
        facts: dict[str, Any] = json.loads(record.read_text())
    elif place.exists() and any(place.iterdir()):
        raise BadInput(f"{uri} is there and is not the demo lake; name another with --lake")
    else:
        half = place.with_name(place.name + ".part")
        shutil.rmtree(half, ignore_errors=True)
        facts = _build(str(half), story or cast(cells()), live)
        (half / record.name).write_text(json.dumps(facts))
        half.rename(place)
    if not live and stream.kept(place):
        _catch_up(place)
    facts |= {"lake": str(uri), "arriving": sum(one.kind == "prediction" for one in stream.kept(place))}
    _tell(facts)
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
    _say("1/5  labels: half of the monocrystalline cells enter the lake with what they are")
    ingest_items(
        lk, (Item(c.name, folder() / c.path, read_annotations=partial(of_class, c.truth)) for c in story.training)
    )
    _say("2/5  embeddings: EfficientNet-Lite0 gives every image a vector")
    model = embedders.for_lake(lk, record, images=len(story.training) + len(story.production))
    backfill(lk, record, model)
    save_threshold(lk, COPIES_FROM)
    _say("3/5  a first model: a logistic head on those vectors")
    vectors, truths = _labelled_vectors(lk)
    head = probe.fit(vectors, truths, REGULARISATION)
    _say(f"4/5  production: {len(story.production)} cells over {WEEKS} weeks are answered and logged")
    served = _serve_model(model, story)
    said = stream.production(story, head.classes, head.probabilities(served))
    left = stream.ARRIVING + 1 if live else 0  # with the customer's call
    before, arriving = said[: len(said) - left], said[len(said) - left :]
    stream.bring_in(lk, before)
    seen = [one.image_id for one in said if one.kind == "prediction"]
    # The serving process has the vectors already; those that arrive later are computed by whoever takes them in.
    store_vectors(lk, record.column, dict(zip(seen, served, strict=True)))
    stream.label(lk, before)
    if arriving:
        stream.keep(Path(uri), arriving)
    _say("5/5  clusters of what production saw")
    tree = stream.group(lk)
    _write_test_set(Path(uri), story)
    complaint = next(one.image_id for one in said if one.kind == "feedback")
    return _numbers(story, said) | {"tree": tree, "complaint": complaint, "held_out": len(story.held_out)}


def _catch_up(place: Path) -> None:
    """Brings in what an interrupted live stream has left."""
    import lake
    from embeddings.backfill.backfill import backfill
    from embeddings.embedders import embedder as embedders

    lk = lake.open(str(place))
    _say("the cells that were still to arrive come in now")
    stream.bring_in(lk, stream.kept(place))
    record = embedders.record_of(lk, None)
    backfill(lk, record, embedders.for_lake(lk, record, images=stream.ARRIVING))
    stream.arrived(lk, place)


def _labelled_vectors(lk: OpenLake) -> tuple[np.ndarray, list[str]]:
    from embeddings.embedders import embedder as embedders
    from lake.storage.vectors import image_vectors

    record = embedders.record_of(lk, None)
    labels = lk.sql("SELECT image_id, label FROM labels_current ORDER BY image_id")
    _, matrix = image_vectors(lk, record, labels["image_id"].to_pylist())  # both in the order of their ids
    return matrix, labels["label"].to_pylist()


def _serve_model(model: Embedder, story: Story) -> np.ndarray:
    """What the serving process computes on the way to its answers: a vector for each cell of production."""
    from embeddings.embedders.preprocess import prepare

    files = [(folder() / cell.path).read_bytes() for cell, _ in story.production]
    out = model.embed_batch([prepare(data, model.spec.preprocessing) for data in files])
    assert len(out.kept) == len(files)
    return out.vectors


def _numbers(story: Story, said: Sequence[Saying]) -> dict[str, Any]:
    from training.metrics.classification_metrics import accuracy, balanced_accuracy

    events = [one.event for one in said if one.kind == "prediction"]
    kinds = np.array([cell.kind for cell, _ in story.production])
    truth = np.array([cell.truth for cell, _ in story.production])
    answers = np.array([event["label"] for event in events])
    confidence = np.array([event["confidence"] for event in events])
    out: dict[str, Any] = {}
    for kind in ("monocrystalline", "polycrystalline"):
        part = kinds == kind
        t, a = truth[part].tolist(), answers[part].tolist()
        out[kind] = {
            "n": len(t),
            "balanced_accuracy": round(balanced_accuracy(a, t), 3),
            "accuracy": round(accuracy(a, t), 3),
            "commoner_class": round(max(t.count("defect"), t.count("functional")) / len(t), 3),
            "called_defect": round(a.count("defect") / len(a), 3),
            "confidence": round(float(confidence[part].mean()), 3),
        }
    least = np.argsort(confidence, kind="stable")[:NEW_KIND_IN_PRODUCTION]
    out["least_confident_that_are_new"] = int((kinds[least] == "polycrystalline").sum())
    out["new_share"] = round(float((kinds == "polycrystalline").mean()), 3)
    return out


def _write_test_set(place: Path, story: Story) -> None:
    """The cells nobody has seen: for judging the next model. File names only, the data stays in its package."""
    lines = ["image,label,module_type", *(f"{c.name},{c.truth},{c.kind}" for c in story.held_out)]
    (place / "held-out.csv").write_text("\n".join(lines) + "\n")


def _tell(facts: dict[str, Any]) -> None:
    mono, poly = facts["monocrystalline"], facts["polycrystalline"]
    # As it was called, so that the lines can be pasted: .venv/bin/lakeloop after `make demo`.
    command = sys.argv[0] if Path(sys.argv[0]).name == "lakeloop" else "lakeloop"
    titles = ("cells", "balanced acc.", "accuracy", "commoner class", "called defect", "confidence")
    head = f"{'':<24}" + "".join(f"{t:>{w}}" for t, w in zip(titles, (6, 15, 10, 16, 15, 12), strict=True))
    _say("", head)
    for name, row in (("monocrystalline", mono), ("polycrystalline (new)", poly)):
        _say(
            f"{name:<24}{row['n']:>6}{row['balanced_accuracy']:>15.2f}{row['accuracy']:>10.2f}"
            f"{row['commoner_class']:>16.2f}{row['called_defect']:>15.0%}{row['confidence']:>12.2f}"
        )
    _say(
        "",
        "The model throws away nearly every cell of the new kind, and is sure of it. Low confidence would not tell:",
        f"of its {poly['n']} least confident answers {facts['least_confident_that_are_new']} are of the new kind "
        f"(by chance: {facts['new_share'] * poly['n']:.0f}). A random check, a complaint, a cluster's error rate do.",
        "",
        "In the app: the first card of the Overview is the failure; open the cluster below it, save it as a slice.",
    )
    if facts["arriving"]:
        _say(
            f"The newest {facts['arriving']} cells arrive while you look, two a second, through lake.client, and a "
            "customer calls:",
            "“Arriving” at the top of the Overview, then its card “What customers say”.",
        )
    else:
        _say("A customer has called about one of the cells: Overview, “What customers say”.")
    _say(
        "Or at the prompt, from the cell the customer complained about:",
        "",
        f"  {command} search --lake {facts['lake']} --id {facts['complaint']} -k 12 --column module_type",
        f'  {command} cluster --lake {facts["lake"]} --where "model IS NOT NULL"',
        f'  {command} sql --lake {facts["lake"]} "SELECT module_type, count(*) n, avg(correct::int) accuracy'
        ' FROM answers_labelled WHERE correct IS NOT NULL GROUP BY ALL"',
        "",
        LICENCE,
    )


def _say(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)  # noqa: T201 - the demo tells its story in the terminal
