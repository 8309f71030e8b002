"""Tables of training runs, their metrics and predictions, gates and releases."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.columns import BOXES, MASKS, SCORES_TYPE, UTC, Column, Table

RUNS = Table(
    "runs",
    "A training run, whole: what it was made from, with what, and what came out.",
    [
        Column("id", pa.string(), "8 hexadecimal digits", nullable=False),
        Column("model", pa.string(), "name of the model it makes a version of", nullable=False),
        Column("task", pa.string(), "classification, detection or segmentation", nullable=False),
        Column("kind", pa.string(), "probe, finetune, or import (weights from elsewhere)", nullable=False),
        Column("status", pa.string(), "running, done, stopped or failed", nullable=False),
        Column("parent", pa.string(), "the run whose weights it began from; null: none"),
        Column("search", pa.string(), "the hyperparameter search it is a trial of; null: none"),
        Column("recipe", pa.string(), "every setting, JSON", nullable=False),
        Column("data", pa.string(), "slices by NAME@VERSION with their use, image counts and hashes of ids, JSON"),
        Column("classes", pa.list_(pa.string()), "the classes it knows, in the order of its outputs"),
        Column("artifacts", pa.string(), "files by name: path under the lake, SHA-256, bytes; JSON"),
        Column("environment", pa.string(), "versions of Python, packages and lakeloop, machine, commit; JSON"),
        Column("seed", pa.int64(), "seed of everything drawn", nullable=False),
        Column("started_at", UTC, "when it began", nullable=False),
        Column("ended_at", UTC, "when it ended; null: it runs, or was killed"),
        Column("error", pa.string(), "why it failed"),
    ],
    key="id",
)

METRICS = Table(
    "metrics",
    "One number of a run: of an epoch, or of a slice. Append only.",
    [
        Column("run", pa.string(), "the run", nullable=False),
        Column("evaluation", pa.string(), "which evaluation of the run, 8 hexadecimal digits; null: while training"),
        Column("metric", pa.string(), "its name: accuracy, balanced_accuracy, map_50, loss, ...", nullable=False),
        Column("slice", pa.string(), "NAME@VERSION it was measured on; null: not on a slice"),
        Column("split", pa.string(), "train, validation or test, while training; null: a slice as a whole"),
        Column("step", pa.int64(), "optimiser steps taken"),
        Column("epoch", pa.float64(), "epochs done"),
        Column("value", pa.float64(), "the number; null: it cannot be said, e.g. of no images"),
        Column("low", pa.float64(), "lower end of its 95 % interval"),
        Column("high", pa.float64(), "upper end"),
        Column("n", pa.int64(), "images it was measured on"),
        Column("at", UTC, "when", nullable=False),
    ],
    key="",
    indexed=["run"],
)

SCORES = Table(
    "scores",
    "One answer of an evaluated, candidate or shadow model to one image. Never a production answer.",
    [
        Column("id", pa.string(), "RUN/IMAGE_ID, for shadow answers RUN/PREDICTION_ID", nullable=False),
        Column("run", pa.string(), "the run whose model answered", nullable=False),
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("prediction_id", pa.string(), "shadow: production's answer to the same query; null otherwise"),
        Column("task", pa.string(), "as in predictions", nullable=False),
        Column("label", pa.string(), "as in predictions"),
        Column("confidence", pa.float64(), "as in predictions"),
        Column("scores", SCORES_TYPE, "as in predictions"),
        Column("boxes", BOXES, "as in predictions"),
        Column("masks", MASKS, "as in predictions"),
        Column("at", UTC, "when", nullable=False),
    ],
    key="id",
    indexed=["id", "run"],
)

GATES = Table(
    "gates",
    "One verdict on a candidate, with everything it rests on.",
    [
        Column("id", pa.string(), "8 hexadecimal digits", nullable=False),
        Column("candidate", pa.string(), "the run that was judged", nullable=False),
        Column("baseline", pa.string(), "the run it was compared with", nullable=False),
        Column("outcome", pa.string(), "passed, failed or undecided", nullable=False),
        Column("blocks", pa.bool_(), "whether the policy keeps the candidate from being promoted", nullable=False),
        Column("policy", pa.string(), "margins, metrics, protected slices, levels; JSON", nullable=False),
        Column("slices", pa.string(), "the figures and the outcome of every slice, JSON", nullable=False),
        Column("at", UTC, "when", nullable=False),
    ],
    key="id",
)

RELEASES = Table(
    "releases",
    "What happened to a model's versions. Append only; the view `models` has the present state.",
    [
        Column("event_id", pa.string(), "UUID of the entry", nullable=False),
        Column("model", pa.string(), "the model", nullable=False),
        Column("version", pa.int32(), "1, 2, ... in the order of registration", nullable=False),
        Column("run", pa.string(), "the run that made it", nullable=False),
        Column("action", pa.string(), "registered, promoted, rolled_back, shadowed or retired", nullable=False),
        Column("gate", pa.string(), "the gate it passed; null: none was asked"),
        Column("reason", pa.string(), "why, in the words of whoever did it"),
        Column("timestamp", UTC, "when", nullable=False),
    ],
    key="event_id",
)
