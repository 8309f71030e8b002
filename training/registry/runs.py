"""The record of training: a row of `runs` for each run, its numbers in `metrics`, its files in `runs/ID/` of the lake.

A run's row is written when it begins and again when it ends. It does not know how anything is trained.
"""

from __future__ import annotations

import builtins
import datetime as dt
import json
import os
import platform
import secrets
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lake.errors import BadInput, CouldNot
from lake.slices.naming import check_name, unknown
from lake.storage import schema, store
from lake.storage.store import literal
from lake.version import VERSION
from training.registry.recipe import Recipe

if TYPE_CHECKING:
    from lake.storage.store import Lake

_PACKAGES = ("torch", "torchvision", "timm", "open-clip-torch", "numpy", "pillow", "safetensors", "pylance")


@dataclass(frozen=True)
class Run:
    """One row of `runs`, its JSON read.

    `status` is running, done, stopped or failed. `settings` is the saved recipe. `artifacts` maps a name to its path
    under the lake, its SHA-256 and its size in bytes.
    """

    id: str
    model: str
    task: str
    kind: str
    status: str
    settings: dict[str, Any]
    seed: int
    started_at: dt.datetime
    parent: str | None = None
    search: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    ended_at: dt.datetime | None = None
    error: str | None = None

    @property
    def recipe(self) -> Recipe:
        return Recipe.of(self.settings, f"run {self.id}")


def create(
    lake: Lake,
    model: str,
    recipe: Recipe,
    *,
    data: Mapping[str, Any],
    classes: Sequence[str],
    parent: str | None = None,
    search: str | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Run:
    """A new run, status running, and its empty folder. Raises BadInput for a bad model name, CouldNot for a lake that
    is not on a local disk.
    """
    check_name(model)
    while True:
        made = Run(
            secrets.token_hex(4),
            model,
            recipe.task,
            recipe.kind,
            "running",
            json.loads(recipe.json()),
            recipe.seed,
            store.now(),
            parent,
            search,
            dict(data),
            tuple(classes),
            {},
            facts_of_this_machine() | dict(environment or {}),
        )
        if lake.insert("runs", _rows([made])):
            folder(lake, made.id).mkdir(parents=True, exist_ok=True)
            return made


def change(lake: Lake, run: Run, **values: Any) -> Run:
    """The run with other values, written to the lake."""
    changed = replace(run, **values)
    lake.update("runs", _rows([changed]))
    return changed


def end(lake: Lake, run: Run, status: str, error: str | None = None, **values: Any) -> Run:
    """Writes how a run ended."""
    return change(lake, run, status=status, error=error, ended_at=store.now(), **values)


def get(lake: Lake, name: str) -> Run:
    """The run of this id, or the only one whose id begins so. Raises BadInput, naming the nearest."""
    found = _read(lake, f"id = {literal(name)}") or _read(lake, f"starts_with(id, {literal(name)})") if name else []
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(f"{len(found)} runs begin with {name!r}: {', '.join(r.id for r in found)}")
    raise unknown("run", name, (row["id"] for row in lake.scan("runs", ["id"]).to_pylist()))


def list(lake: Lake, *, model: str | None = None, search: str | None = None) -> Sequence[Run]:
    """All runs, the newest first; only those of a model, or of a search, when given."""
    said = [f"{key} = {literal(value)}" for key, value in (("model", model), ("search", search)) if value is not None]
    return sorted(_read(lake, " and ".join(said) or None), key=lambda r: (r.started_at, r.id), reverse=True)


def log(lake: Lake, run: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Adds rows to `metrics` (metric, value, and what else is known of slice, split, step, epoch, n), once each.

    A row that says the same metric of the same step, split and slice as one that is there is left out: a resumed run
    counts nothing twice. Returns how many were added.
    """
    key = ("evaluation", "metric", "slice", "split", "step")
    there = {tuple(row[k] for k in key) for row in lake.scan("metrics", [*key], f"run = {literal(run)}").to_pylist()}
    now = store.now()
    new = [dict(row) | {"run": run, "at": now} for row in rows if tuple(row.get(k) for k in key) not in there]
    if new:
        lake.insert("metrics", pa.Table.from_pylist(new, schema=schema.METRICS.arrow()))
    return len(new)


def metrics(lake: Lake, run: str) -> builtins.list[dict[str, Any]]:
    """The rows of `metrics` of a run, by evaluation, step, slice, split and name."""
    rows = lake.scan("metrics", [c.name for c in schema.METRICS.columns], f"run = {literal(run)}").to_pylist()
    order = ("evaluation", "step", "slice", "split", "metric")
    return sorted(rows, key=lambda r: [(r[k] is not None, r[k] if r[k] is not None else 0) for k in order])


def folder(lake: Lake, run: str) -> Path:
    """Where a run's files are. Raises CouldNot for a lake on object storage."""
    if lake.folder is None:
        raise CouldNot(f"runs are kept only in a lake on a local disk so far, not in {lake.uri}")
    return lake.folder / "runs" / run


def artifact(lake: Lake, path: Path) -> dict[str, Any]:
    """What `Run.artifacts` says of a file in the lake's folder."""
    from embeddings.embedders.weights import file_sha256

    assert lake.folder is not None
    name = path.relative_to(lake.folder).as_posix()
    return {"path": name, "sha256": file_sha256(path), "bytes": path.stat().st_size}


def model_file(lake: Lake, run: Run) -> Path:
    """The file of a finished run's model, the very one that was recorded.

    Raises BadInput when the run is not done, and when its file is missing or another; CouldNot as `folder` does.
    """
    from embeddings.embedders.weights import file_sha256

    made = run.artifacts.get("model")
    if run.status != "done" or made is None:
        raise BadInput(f"run {run.id} is {run.status} and has no model; see: lakeloop train --resume {run.id}")
    path = folder(lake, run.id).parents[1] / str(made["path"])
    if not path.is_file():
        raise BadInput(f"the model of run {run.id} is not at {path} any more; bring it back from a backup")
    if file_sha256(path) != made["sha256"]:
        raise BadInput(f"{path} is not the file that run {run.id} wrote: its SHA-256 is another")
    return path


def facts_of_this_machine() -> dict[str, Any]:
    """Versions of Python, packages and lakeloop, the machine, and the commit where this is a checkout."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "lakeloop": VERSION,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
    }


def _commit() -> str | None:
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():  # an installed package may lie in somebody else's checkout
        return None
    try:
        said = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


_JSON = {"settings": "recipe", "data": "data", "artifacts": "artifacts", "environment": "environment"}


def _rows(runs: Sequence[Run]) -> pa.Table:
    rows = []
    for run in runs:
        row = {k: v for k, v in vars(run).items() if k not in _JSON}
        row |= {column: json.dumps(getattr(run, name)) for name, column in _JSON.items()}
        rows.append(row | {"classes": [*run.classes]})
    return pa.Table.from_pylist(rows, schema=schema.RUNS.arrow())


def _read(lake: Lake, filter: str | None) -> builtins.list[Run]:
    found = []
    for row in lake.scan("runs", [c.name for c in schema.RUNS.columns], filter).to_pylist():
        said = {name: json.loads(row.pop(column) or "{}") for name, column in _JSON.items()}
        found.append(Run(**row | said | {"classes": tuple(row["classes"] or ())}))
    return found
