"""The record of runs: a row of table `runs`, metrics in table `metrics`, files in `runs/ID/`.

The row is written when a run starts and again when it ends. How runs are trained is not known here.
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
    """A new run with status running, and its empty folder. Raises BadInput for an invalid model name, CouldNot if the
    lake is not on a local disk.
    """
    check_name(model, "model")
    while True:
        run = Run(
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
            machine_facts() | dict(environment or {}),
        )
        if lake.insert("runs", _rows([run])):
            folder(lake, run.id).mkdir(parents=True, exist_ok=True)
            return run


def change(lake: Lake, run: Run, **values: Any) -> Run:
    """Changes values of a run and writes it to the lake."""
    changed = replace(run, **values)
    lake.update("runs", _rows([changed]))
    return changed


def end(lake: Lake, run: Run, status: str, error: str | None = None, **values: Any) -> Run:
    """Sets the final status of a run, and its time."""
    return change(lake, run, status=status, error=error, ended_at=store.now(), **values)


def get(lake: Lake, name: str) -> Run:
    """The run with this id, or with the only id that starts with it. Raises BadInput with the nearest ids."""
    matches = _read(lake, f"id = {literal(name)}") or _read(lake, f"starts_with(id, {literal(name)})") if name else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise BadInput(f"{len(matches)} runs begin with {name!r}: {', '.join(run.id for run in matches)}")
    raise unknown("run", name, (row["id"] for row in lake.scan("runs", ["id"]).to_pylist()))


def list(lake: Lake, *, model: str | None = None, search: str | None = None) -> Sequence[Run]:
    """All runs, or those of a model or of a search, newest first."""
    columns = {"model": model, "search": search}
    conditions = [f"{name} = {literal(value)}" for name, value in columns.items() if value is not None]
    return sorted(_read(lake, " and ".join(conditions) or None), key=lambda run: (run.started_at, run.id), reverse=True)


def log(lake: Lake, run: str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Adds rows to `metrics` (metric, value, and optionally slice, split, step, epoch, n). Returns how many were added.

    Skips a row if the same metric exists for the same evaluation, step, split and slice, so that a resumed run logs
    nothing twice.
    """
    key = ("evaluation", "metric", "slice", "split", "step")
    stored = lake.scan("metrics", [*key], f"run = {literal(run)}").to_pylist()
    known = {tuple(row[k] for k in key) for row in stored}
    now = store.now()
    new = [dict(row) | {"run": run, "at": now} for row in rows if tuple(row.get(k) for k in key) not in known]
    if new:
        lake.insert("metrics", pa.Table.from_pylist(new, schema=schema.METRICS.arrow()))
    return len(new)


def metrics(lake: Lake, run: str) -> builtins.list[dict[str, Any]]:
    """The rows of `metrics` of a run, ordered by evaluation, step, slice, split and metric."""
    rows = lake.scan("metrics", [c.name for c in schema.METRICS.columns], f"run = {literal(run)}").to_pylist()
    order = ("evaluation", "step", "slice", "split", "metric")
    return sorted(rows, key=lambda r: [(r[k] is not None, r[k] if r[k] is not None else 0) for k in order])


def folder(lake: Lake, run: str) -> Path:
    """The folder of a run's files. Raises CouldNot for a lake on object storage."""
    if lake.folder is None:
        raise CouldNot(f"runs can be stored only in a lake on a local disk, not in {lake.uri}")
    return lake.folder / "runs" / run


def artifact(lake: Lake, path: Path) -> dict[str, Any]:
    """The entry of `Run.artifacts` for a file in the lake's folder."""
    from embeddings.embedders.weights import file_sha256

    assert lake.folder is not None
    name = path.relative_to(lake.folder).as_posix()
    return {"path": name, "sha256": file_sha256(path), "bytes": path.stat().st_size}


def model_file(lake: Lake, run: Run) -> Path:
    """The model file of a finished run, checked against its recorded SHA-256.

    Raises BadInput if the run is not done, or if the file is missing or has changed; CouldNot as `folder` does.
    """
    from embeddings.embedders.weights import file_sha256

    recorded = run.artifacts.get("model")
    if run.status != "done" or recorded is None:
        raise BadInput(f"run {run.id} is {run.status} and has no model; see: lakeloop train --resume {run.id}")
    path = folder(lake, run.id).parents[1] / str(recorded["path"])
    if not path.is_file():
        raise BadInput(f"the model of run {run.id} is missing at {path}; restore it from a backup")
    if file_sha256(path) != recorded["sha256"]:
        raise BadInput(f"{path} is not the file that run {run.id} wrote: its SHA-256 differs")
    return path


def machine_facts() -> dict[str, Any]:
    """Versions of Python, packages and lakeloop, the machine, and the commit if lakeloop runs from a checkout."""
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
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # an installed package may be inside another checkout
        return None
    try:
        process = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()


_JSON = {"settings": "recipe", "data": "data", "artifacts": "artifacts", "environment": "environment"}


def _rows(runs: Sequence[Run]) -> pa.Table:
    rows = []
    for run in runs:
        row = {k: v for k, v in vars(run).items() if k not in _JSON}
        row |= {column: json.dumps(getattr(run, name)) for name, column in _JSON.items()}
        rows.append(row | {"classes": [*run.classes]})
    return pa.Table.from_pylist(rows, schema=schema.RUNS.arrow())


def _read(lake: Lake, filter: str | None) -> builtins.list[Run]:
    runs = []
    for row in lake.scan("runs", [c.name for c in schema.RUNS.columns], filter).to_pylist():
        decoded = {name: json.loads(row.pop(column) or "{}") for name, column in _JSON.items()}
        runs.append(Run(**row | decoded | {"classes": tuple(row["classes"] or ())}))
    return runs
