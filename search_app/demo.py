"""The demo story: a solar cell inspection model meets a product line it has never seen.

Real data (`elpv-dataset`: 2,624 electroluminescence photographs of solar cells), a real model (a logistic head on the
lake's own embedder), real answers. A first model is trained on half of the monocrystalline cells. Production is the
other half over six weeks; in the last two, sixty polycrystalline cells come along. One answer in three is checked
by a person, at random. Everything is seeded: two machines build the same lake.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lake.errors import BadInput
from lake.extras import require

if TYPE_CHECKING:
    from embeddings.embedder import Embedder
    from lake.store import Lake

SEED = 0
NEW_KIND_IN_PRODUCTION = 60
START = dt.datetime(2026, 9, 7, 6, 0, tzinfo=dt.UTC)
WEEKS = 6
NEW_KIND_FROM_WEEK = 4
CHECKED_SHARE = 1 / 3
REGULARISATION = 0.01
MODEL, VERSION = "cell-inspector", "1"

LICENCE = (
    "data: elpv-dataset, CC BY-NC-SA 4.0 (non-commercial); Buerhop-Lutz et al. 2018, Deitsch et al. 2019 and 2021\n"
    "weights: EfficientNet-Lite0, Apache-2.0"
)


@dataclass(frozen=True)
class Cell:
    """One photograph. `probability` of a defect as the data set's authors judged it: 0, 1/3, 2/3 or 1."""

    path: Path
    name: str
    truth: str
    kind: str


@dataclass(frozen=True)
class Story:
    """Who plays which part."""

    training: list[Cell]
    production: list[tuple[Cell, dt.datetime]]
    held_out: list[Cell]


def quickstart(uri: str) -> dict[str, Any]:
    """Builds the demo lake at `uri` unless it is there, tells the story on stderr, returns its numbers.

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
        facts = _build(str(half))
        (half / record.name).write_text(json.dumps(facts))
        half.rename(place)
    facts |= {"lake": str(uri)}
    _tell(facts)
    return facts


def cells() -> list[Cell]:
    """The data set, in its own order. A defect is a probability of one half or more."""
    elpv_dataset = require("elpv_dataset", "elpv-dataset", "demo")
    root = Path(elpv_dataset.__file__).parent / "data"
    out = []
    for line in (root / "labels.csv").read_text().splitlines():
        path, probability, kind = line.split()
        truth = "defect" if float(probability) >= 0.5 else "functional"
        out.append(Cell(root / path, f"elpv/{path}", truth, f"{kind}crystalline"))
    return out


def cast(everything: list[Cell]) -> Story:
    """Deals the parts, seeded. The new kind arrives only in the last weeks."""
    rng = np.random.default_rng(SEED)
    mono = [c for c in everything if c.kind == "monocrystalline"]
    poly = [c for c in everything if c.kind == "polycrystalline"]
    mono = [mono[i] for i in rng.permutation(len(mono))]
    poly = [poly[i] for i in rng.permutation(len(poly))]
    half = len(mono) // 2
    stream = [(c, START + dt.timedelta(weeks=WEEKS) * float(rng.random())) for c in mono[half:]]
    late = START + dt.timedelta(weeks=NEW_KIND_FROM_WEEK)
    span = dt.timedelta(weeks=WEEKS - NEW_KIND_FROM_WEEK)
    stream += [(c, late + span * float(rng.random())) for c in poly[:NEW_KIND_IN_PRODUCTION]]
    stream = [(c, moment.replace(microsecond=0)) for c, moment in stream]
    return Story(mono[:half], sorted(stream, key=lambda s: (s[1], s[0].name)), poly[NEW_KIND_IN_PRODUCTION:])


def _build(uri: str) -> dict[str, Any]:
    import lake
    from embeddings import embedder as embedders
    from embeddings.backfill import backfill, store_vectors
    from embeddings.cluster import cluster
    from embeddings.specs import DEFAULT
    from lake.ingest import ingest, ingest_items
    from lake.sources import Item
    from training import probe

    story = cast(cells())
    lk = lake.create(uri, embedders=[DEFAULT], columns={"module_type": "string"})
    record = embedders.record_of(lk, None)
    _say("1/5  labels: half of the monocrystalline cells enter the lake with what they are")
    ingest_items(lk, (Item(c.name, path=c.path, label=c.truth) for c in story.training))
    _say("2/5  embeddings: EfficientNet-Lite0 gives every image a vector")
    model = embedders.for_lake(lk, record, images=len(story.training) + len(story.production))
    backfill(lk, record, model)
    _say("3/5  a first model: a logistic head on those vectors")
    vectors, truths = _labelled_vectors(lk)
    head = probe.fit(vectors, truths, REGULARISATION)
    _say(f"4/5  production: {len(story.production)} cells over {WEEKS} weeks are answered and logged")
    seen, served = _serve_model(model, story)
    chances = head.probabilities(served)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "production.jsonl")
        log.write_text("".join(json.dumps(row) + "\n" for row in _log(story, head.classes, chances)))
        ingest(lk, log)
    store_vectors(lk, record.column, dict(zip(seen, served, strict=True)))
    _random_check(lk, story, seen)
    _say("5/5  clusters of what production saw")
    tree = cluster(lk, where="model IS NOT NULL", method="kmeans", seed=SEED)
    _write_test_set(Path(uri), story)
    said = [head.classes[i] for i in chances.argmax(axis=1)]
    return _numbers(story, said, chances.max(axis=1)) | {
        "tree": tree.tree,
        "complaint": seen[_complaint(story, said, chances.max(axis=1))],
        "held_out": len(story.held_out),
    }


def _labelled_vectors(lk: Lake) -> tuple[np.ndarray, list[str]]:
    from embeddings import embedder as embedders
    from embeddings.vectors import of_images

    record = embedders.record_of(lk, None)
    labels = lk.sql("SELECT image_id, label FROM labels_current ORDER BY image_id")
    _, matrix = of_images(lk, record, labels["image_id"].to_pylist())  # both in the order of their ids
    return matrix, labels["label"].to_pylist()


def _serve_model(model: Embedder, story: Story) -> tuple[list[str], np.ndarray]:
    """What the serving process computes on the way to its answers: ids and vectors of the stream."""
    from embeddings.preprocess import prepare
    from lake.ids import image_id

    files = [cell.path.read_bytes() for cell, _ in story.production]
    out = model.embed_batch([prepare(data, model.spec.preprocessing) for data in files])
    assert len(out.kept) == len(files)
    return [image_id(data) for data in files], out.vectors


def _log(story: Story, classes: tuple[str, ...], chances: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for (cell, moment), row in zip(story.production, chances.tolist(), strict=True):
        best = int(np.argmax(row))
        rows.append(
            {
                "image": str(cell.path),
                "source": cell.name,
                "timestamp": moment.isoformat(),
                "model": MODEL,
                "model_version": VERSION,
                "label": classes[best],
                "confidence": row[best],
                "scores": dict(zip(classes, row, strict=True)),
                "module_type": cell.kind,
            }
        )
    return rows


def _random_check(lk: Lake, story: Story, seen: list[str]) -> None:
    """A person looks at one answer in three, drawn at random, and says what the cell is."""
    import pyarrow as pa

    from lake import schema
    from lake.ids import label_event_id

    drawn = np.random.default_rng(SEED + 1).random(len(seen)) < CHECKED_SHARE
    rows = [
        {
            "event_id": label_event_id(name, cell.truth, "human"),
            "image_id": name,
            "timestamp": moment + dt.timedelta(days=1),
            "task": "classification",
            "label": cell.truth,
            "origin": "human",
            "annotator": "random check",
        }
        for name, (cell, moment), checked in zip(seen, story.production, drawn.tolist(), strict=True)
        if checked
    ]
    distinct = {r["event_id"]: r for r in rows}
    lk.insert("labels", pa.Table.from_pylist(list(distinct.values()), schema=schema.LABELS.arrow()))


def _complaint(story: Story, said: list[str], confidence: np.ndarray) -> int:
    """The sound cell of the new kind that was thrown away with the greatest confidence: somebody calls."""
    wrong = [
        i for i, (cell, _) in enumerate(story.production)
        if cell.kind == "polycrystalline" and cell.truth == "functional" and said[i] == "defect"
    ]  # fmt: skip
    return max(wrong, key=lambda i: float(confidence[i]))


def _numbers(story: Story, said: list[str], confidence: np.ndarray) -> dict[str, Any]:
    from training.probe import accuracy, balanced_accuracy

    kinds = np.array([cell.kind for cell, _ in story.production])
    truth = np.array([cell.truth for cell, _ in story.production])
    answers = np.array(said)
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
        "Or at the prompt, from the cell a customer complained about:",
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
