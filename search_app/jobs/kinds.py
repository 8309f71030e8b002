"""The kinds of jobs: what each takes, who may start it over HTTP, whether it resumes, and the function that does it.

Importing it is light. A kind's functions are in its module under its name: `NAME(lake, arguments, work)` does the work
and returns the library's report, `NAME_check(lake, arguments)` raises BadInput before the job is recorded, and
`NAME_result(report)` gives what the job made as plain data.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput
from search_app.jobs.arguments import Argument, checked

if TYPE_CHECKING:
    from lake.jobs.running_job import Work
    from lake.storage.store import Lake

METHODS = ("auto", "kmeans", "hdbscan", "evoc")
FORMATS = (
    *("imagefolder", "coco", "yolo", "voc", "csv", "jsonl"),
    *("parquet", "webdataset", "hf", "list", "label-studio", "lance"),
)
_MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Kind:
    """`scope`: what a key needs to start it; `remote`: it may be started over HTTP; `resumes`: another attempt
    continues what a dead worker left; `title`: what it does, as a heading.
    """

    name: str
    title: str
    module: str
    scope: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    resumes: bool = False
    remote: bool = True

    def checked(self, lake: Lake, given: Mapping[str, Any], *, local: bool) -> dict[str, Any]:
        """The arguments, ready to be recorded. Raises BadInput for what the job would refuse."""
        arguments = checked(self.name, self.arguments, given, local=local)
        if not local and "where" in arguments:
            from search_app.security import filter_bounds

            filter_bounds.check(lake, arguments["where"])
        self._function(f"{self.name}_check")(lake, arguments)
        return arguments

    def run(self, lake: Lake, arguments: Mapping[str, Any], work: Work) -> Any:
        """Does the work; returns the library's report."""
        return self._function(self.name)(lake, arguments, work)

    def result(self, report: Any) -> dict[str, Any]:
        """What it made, as plain data for JSON."""
        result: dict[str, Any] = self._function(f"{self.name}_result")(report)
        return result

    def _function(self, name: str) -> Any:
        return getattr(importlib.import_module(self.module), name)


def _scoped(**more: Argument) -> dict[str, Argument]:
    return {
        "where": Argument("text", "only images with a row that passes this SQL filter"),
        "embedder": Argument("text", "the embedder; default: the lake's first"),
        "seed": Argument("integer", "the same seed gives the same result", least=0, most=_MOST_SEED),
        **more,
    }


_SLICES = {
    "train": Argument("texts", "slices to train on"),
    "replay": Argument("texts", "slices of older images that prevent forgetting"),
    "validation": Argument("texts", "slices that choose the epoch; default: a share of the training images"),
    "test": Argument("texts", "slices that are evaluated once, at the end"),
    "name": Argument("text", "name of the model"),
    "recipe": Argument("object", "settings by name; docs/training.md lists them"),
    "weights": Argument("text", "file or folder of pretrained weights", local=True),
    "device": Argument("text", "where to train", choices=("auto", "cpu", "cuda")),
    "workers": Argument("integer", "decoding processes", least=0, most=256),
}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("ingest", "Ingest", "search_app.jobs.data_kinds", "admin", {
            "path": Argument("text", "the folder or file to ingest", required=True, local=True),
            "layout": Argument("text", "its layout; default: recognised"),
            "model": Argument("text", "boxes, masks and scores are predictions of this model, not labels"),
            "model_version": Argument("text", "the version of that model"),
            "white_point": Argument("text", "white of images of more than 8 bits: WHITE, BLACK..WHITE or auto"),
            "orientation": Argument(
                "text", "what coordinates mean for images that EXIF turns: of the stored or the upright pixels",
                choices=("stored", "upright"),
            ),
            "map": Argument("texts", "of a log: FIELD=COLUMN; COLUMN none: no column is this field"),
            "truth": Argument("text", "of a log: the column with the true class"),
            "encoding": Argument("text", "of a log: its encoding; default: UTF-8, or UTF-16 by its mark"),
            "separator": Argument("text", "of a log: what separates its columns; default: found"),
            "confidence_scale": Argument("number", "of a log: 100 if confidences are percentages", least=0, most=1e9),
        }, remote=False),
        Kind("embed", "Embedding", "search_app.jobs.vector_kinds", "admin", {
            "embedder": Argument("text", "the embedder; default: the lake's first; a new one is added"),
            "order": Argument("text", "which images come first", choices=("oldest", "newest", "sampled")),
            "retry_failed": Argument("flag", "also try images that failed before"),
            "engine": Argument("text", "what runs the network", choices=("auto", "torch", "openvino")),
            "weights": Argument("text", "file of weights", local=True),
            "trust_sha256": Argument("text", "SHA-256 of a weights file to trust", local=True),
        }, resumes=True),
        Kind("cluster", "Clustering", "search_app.jobs.vector_kinds", "edit", _scoped(
            node=Argument("text", "split this node, TREE/PATH: cluster its images again"),
            slice=Argument("text", "only images of this slice"),
            method=Argument("text", "how to cluster", choices=METHODS),
            k=Argument("integer", "number of k-means clusters", least=2, most=10_000),
            min_cluster_size=Argument("integer", "smallest cluster of HDBSCAN and EVoC", least=2),
            words=Argument("texts", "names to choose from for nodes"),
        )),
        Kind("map", "Map", "search_app.jobs.vector_kinds", "edit", _scoped(
            node=Argument("text", "only images of this node, TREE/PATH"),
        )),
        Kind("discover", "Discovery", "search_app.jobs.vector_kinds", "edit", {
            "where": Argument("text", "only predictions that pass this SQL filter"),
            "slice": Argument("text", "only predictions for images of this slice"),
            "by": Argument("text", "what to compare", choices=("both", "metadata", "cluster")),
            "errors": Argument("text", "what counts as an error", choices=("judged", "confidence")),
            "lake_state": Argument("text", "what the caller knows the state of the lake by, to find the job again"),
            "seed": Argument("integer", "the same seed gives the same result", least=0, most=_MOST_SEED),
        }),
        Kind("duplicates", "Near-duplicates", "search_app.jobs.vector_kinds", "edit", {
            "slice": Argument("text", "only images of this slice"),
            "threshold": Argument("number", "least cosine similarity of a pair", least=-1, most=1),
            "embedder": Argument("text", "the embedder; default: the lake's first"),
        }),
        Kind("export", "Export", "search_app.jobs.data_kinds", "edit", {
            "slice": Argument("text", "the slice, NAME or NAME@VERSION", required=True),
            "format": Argument("text", "the format; default: imagefolder", choices=FORMATS),
            "predictions": Argument("text", "also the newest prediction of this model for each image"),
            "out": Argument("text", "a new folder; default: among the lake's exports", local=True),
        }, resumes=True),
        Kind("train", "Training", "search_app.jobs.model_kinds", "admin", {
            **_SLICES,
            "resume": Argument("text", "continue this run; without slices and settings"),
            "parent": Argument("text", "start from the weights of this run or model"),
            "trust_sha256": Argument("text", "SHA-256 of a weights file to trust", local=True),
            "tensorboard": Argument("text", "also write the curves here for TensorBoard", local=True),
        }, resumes=True),
        Kind("tune", "Tuning", "search_app.jobs.model_kinds", "admin", {
            **_SLICES,
            "search": Argument("text", "name of the search; the same name continues it"),
            "tried": Argument("texts", "what to try: KEY=LOW..HIGH or KEY=A,B,..."),
            "architectures": Argument("texts", "compare these architectures"),
            "trials": Argument("integer", "number of trials, with those of earlier jobs", least=1, most=10_000),
        }, resumes=True),
        Kind("evaluate", "Evaluation", "search_app.jobs.model_kinds", "admin", {
            "run": Argument("text", "the run to evaluate", required=True),
            "slices": Argument("texts", "also these slices"),
            "only": Argument("flag", "only these slices"),
            "costs": Argument("object", "cost of each wrong prediction, by true and predicted class"),
        }, resumes=True),
        Kind("gate", "Gate", "search_app.jobs.model_kinds", "admin", {
            "candidate": Argument("text", "the run that would replace the other", required=True),
            "baseline": Argument("text", "default: the promoted version, else the run it started from"),
            "policy": Argument("object", "margins, metrics and protected slices: docs/gate.md"),
            "evaluate": Argument("flag", "first evaluate both runs where that is missing"),
        }, resumes=True),
        Kind("maintain", "Maintenance", "search_app.jobs.data_kinds", "admin", {
            "older_than": Argument("number", "remove versions older than this many seconds", least=0, most=1e9),
        }, resumes=True),
    )
}  # fmt: skip


def scope(name: str) -> str:
    """The scope that starting a job of this kind needs, and stopping or repeating one that somebody else started."""
    return KINDS[name].scope if name in KINDS else "admin"  # of another release


def get(name: str) -> Kind:
    """The kind of this name. Raises BadInput with the nearest names."""
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, 3) or sorted(KINDS)
        raise BadInput(f"there is no kind of job {name[:100]!r}; did you mean {', '.join(near)}?")
    return KINDS[name]
