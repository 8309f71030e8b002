"""Tables of training runs, their metrics and predictions, gates and releases."""

from __future__ import annotations

import pyarrow as pa

from lake.storage.schema.types import BOXES, MASKS, SCORES_TYPE, UTC, Column, Table

RUNS = Table(
    "runs",
    "A training run: its data, recipe, environment and artifacts.",
    [
        Column("id", pa.string(), "8 hexadecimal digits", nullable=False),
        Column("model", pa.string(), "name of the model that it trains a version of", nullable=False),
        Column("task", pa.string(), "classification, detection or segmentation", nullable=False),
        Column("kind", pa.string(), "probe, finetune, or import (weights from elsewhere)", nullable=False),
        Column("status", pa.string(), "running, done, stopped or failed", nullable=False),
        Column("parent", pa.string(), "the run whose weights it started from; null: none"),
        Column("search", pa.string(), "the hyperparameter search it is a trial of; null: none"),
        Column("recipe", pa.string(), "every setting, JSON", nullable=False),
        Column("data", pa.string(), "slices by NAME@VERSION with their use, image counts and hashes of ids, JSON"),
        Column("classes", pa.list_(pa.string()), "the model's classes, in the order of its outputs"),
        Column("artifacts", pa.string(), "files by name: path under the lake, SHA-256, bytes; JSON"),
        Column("environment", pa.string(), "versions of Python, packages and lakeloop, machine, commit; JSON"),
        Column("seed", pa.int64(), "seed of all random numbers", nullable=False),
        Column("started_at", UTC, "when it started", nullable=False),
        Column("ended_at", UTC, "when it ended; null: it is running, or was killed"),
        Column("error", pa.string(), "why it failed"),
    ],
    key="id",
)

METRICS = Table(
    "metrics",
    "A metric of a run: of an epoch, or on a slice. Append only.",
    [
        Column("run", pa.string(), "the run", nullable=False),
        Column("evaluation", pa.string(), "which evaluation of the run, 8 hexadecimal digits; null: while training"),
        Column("metric", pa.string(), "its name: accuracy, balanced_accuracy, map_50, loss, ...", nullable=False),
        Column("slice", pa.string(), "NAME@VERSION it was measured on; null: not on a slice"),
        Column("split", pa.string(), "train, validation or test, while training; null: a slice as a whole"),
        Column("step", pa.int64(), "optimiser steps taken"),
        Column("epoch", pa.float64(), "epochs done"),
        Column("value", pa.float64(), "the value; null: undefined, e.g. without images"),
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
    "A prediction of an evaluated, candidate or shadow model. Never a production prediction.",
    [
        Column("id", pa.string(), "RUN/IMAGE_ID, for shadow predictions RUN/PREDICTION_ID", nullable=False),
        Column("run", pa.string(), "the run whose model made it", nullable=False),
        Column("image_id", pa.string(), "the image", nullable=False),
        Column("prediction_id", pa.string(), "shadow: the production prediction for the same query; null otherwise"),
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
    "A gate's verdict on a candidate, with its evidence.",
    [
        Column("id", pa.string(), "8 hexadecimal digits", nullable=False),
        Column("candidate", pa.string(), "the run that was evaluated", nullable=False),
        Column("baseline", pa.string(), "the run it was compared with", nullable=False),
        Column("outcome", pa.string(), "passed, failed or undecided", nullable=False),
        Column("blocks", pa.bool_(), "whether the policy blocks the promotion of the candidate", nullable=False),
        Column("policy", pa.string(), "margins, metrics, protected slices, levels; JSON", nullable=False),
        Column("slices", pa.string(), "the metrics and the outcome of every slice, JSON", nullable=False),
        Column("at", UTC, "when", nullable=False),
    ],
    key="id",
)

RELEASES = Table(
    "releases",
    "An event in the life of a model's version. Append only; the view `models` has the current state.",
    [
        Column("event_id", pa.string(), "UUID of the event", nullable=False),
        Column("model", pa.string(), "the model", nullable=False),
        Column("version", pa.int32(), "1, 2, ... in the order of registration", nullable=False),
        Column("run", pa.string(), "the run that trained it", nullable=False),
        Column("action", pa.string(), "registered, canary, promoted, rolled_back, shadowed or retired", nullable=False),
        Column("gate", pa.string(), "the gate it passed; null: none was run"),
        Column("reason", pa.string(), "why, in the person's own words"),
        Column("timestamp", UTC, "when", nullable=False),
        Column("share", pa.float64(), "canary: the share of images that it predicts, between 0 and 1; null otherwise"),
        Column("limits", pa.string(), "canary: the limits beyond which it is rolled back, JSON; null otherwise"),
    ],
    key="event_id",
)
