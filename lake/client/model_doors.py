"""The doors of `Client` to a server's models: jobs, training runs, evaluations, gates, versions and their promotion.

Each call waits for the server, and raises RequestFailed if it refuses or does not respond. Long work is a job: `start`,
`train`, `tune`, `evaluate` and `gate` return it at once, and `RemoteJob.wait` waits for its result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self, TypeVar

from lake.client.json_requests import in_path

if TYPE_CHECKING:
    from lake.client.json_requests import JsonRequests

FIRST_POLL, LONGEST_POLL = 0.1, 2.0


class JobFailed(Exception):
    """The job failed or was cancelled; the message says why. `job`: as it ended."""

    def __init__(self, job: RemoteJob) -> None:
        super().__init__(f"job {job.id} ({job.kind}) {job.state}: {job.facts['error'] or job.facts['message']}")
        self.job = job


class RemoteJob:
    """A job of the server, as it was when it was last asked about; `refresh` asks again.

    `state`: waiting, running, done, failed or cancelled; failed is not its end while `may_continue` in `facts`, because
    another worker may continue what a dead one left. `result`: what it made; None until it is done. `facts`:
    everything that the server says of it, such as its progress.
    """

    def __init__(self, requests: JsonRequests, facts: Mapping[str, Any]) -> None:
        self._requests = requests
        self.facts = facts

    def __repr__(self) -> str:
        return f"<job {self.id}: {self.kind}, {self.state}>"

    @property
    def id(self) -> str:
        return str(self.facts["id"])

    @property
    def kind(self) -> str:
        return str(self.facts["kind"])

    @property
    def state(self) -> str:
        return str(self.facts["state"])

    @property
    def result(self) -> dict[str, Any] | None:
        result: dict[str, Any] | None = self.facts["result"] if self.state == "done" else None
        return result

    def refresh(self) -> Self:
        """Asks the server for its state now."""
        self.facts = self._requests.get(f"/v1/jobs/{self.id}")
        return self

    def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """Waits until it has ended; returns its result. It goes on if you stop waiting.

        Raises JobFailed if it fails or is cancelled, TimeoutError after `timeout` seconds.
        """
        for _ in _polls(timeout, f"job {self.id} ({self.kind})"):
            self.refresh()
            if self.state not in ("waiting", "running") and not self.facts["may_continue"]:
                break
        if self.state != "done":
            raise JobFailed(self)
        return self.result or {}

    def cancel(self) -> Self:
        """Asks the server to end it, which takes its worker seconds."""
        self.facts = self._requests.write("POST", f"/v1/jobs/{self.id}/cancel")
        return self


@dataclass(frozen=True)
class RunInfo:
    """A training run. `status`: running, done, stopped or failed. `kind`: probe, finetune or import. `parent`: the run
    whose weights it started from. Times are ISO 8601, UTC.
    """

    id: str
    model: str
    task: str
    kind: str
    status: str
    parent: str | None
    started_at: str
    ended_at: str | None
    error: str | None


@dataclass(frozen=True)
class VersionInfo:
    """A version of a model, NAME@V. `status`: registered, canary, promoted, shadow or retired. `share`: the share of
    images that a canary predicts, and `limits` when it is rolled back; None unless it is one.
    """

    id: str
    model: str
    version: int
    run: str
    status: str
    gate: str | None
    reason: str | None
    share: float | None
    limits: Mapping[str, float] | None


@dataclass(frozen=True)
class ModelInfo:
    """A model with registered versions. `promoted`, `canary` and `shadows` are NAME@V; `versions` is their number."""

    model: str
    promoted: str | None
    canary: str | None
    shadows: Sequence[str]
    versions: int


Info = TypeVar("Info", RunInfo, VersionInfo, ModelInfo)


class RemoteRun:
    """A training run on the server. Nothing is requested until you call a method."""

    def __init__(self, requests: JsonRequests, name: str) -> None:
        self._requests = requests
        self.id = name
        self._path = f"/v1/runs/{in_path(name, 'run')}"

    def __repr__(self) -> str:
        return f"<run {self.id} of {self._requests.url}>"

    def info(self) -> RunInfo:
        """Its facts now."""
        return _read(RunInfo, self.facts())

    def facts(self) -> dict[str, Any]:
        """Everything about it: also its recipe, data, files and environment."""
        return dict(self._requests.get(self._path))

    def wait(self, timeout: float | None = None) -> RunInfo:
        """Waits until it is done, stopped or failed. Raises TimeoutError after `timeout` seconds."""
        for _ in _polls(timeout, f"run {self.id}"):
            info = self.info()
            if info.status != "running":
                break
        return info

    def metrics(self, metric: str | None = None) -> Iterator[dict[str, Any]]:
        """Rows of the table metrics: those of training by step, then those of evaluations by slice."""
        return self._requests.items(f"{self._path}/metrics", {"metric": metric, "limit": 1_000})


class ModelDoors:
    """Part of `Client`, which sets `_requests`."""

    _requests: JsonRequests

    def start(self, kind: str, **arguments: Any) -> RemoteJob:
        """Starts a job of any kind, with the arguments of its kind; docs/jobs.md lists them."""
        body = {"kind": kind, "arguments": _given(arguments)}
        return RemoteJob(self._requests, self._requests.write("POST", "/v1/jobs", body))

    def job(self, job_id: str) -> RemoteJob:
        """The job with this id."""
        return RemoteJob(self._requests, self._requests.get(f"/v1/jobs/{in_path(job_id, 'job')}"))

    def jobs(self, state: str | None = None, kind: str | None = None) -> list[RemoteJob]:
        """All jobs, or those in a state or of a kind, newest first."""
        query = {"state": state, "kind": kind, "limit": 1_000}
        return [RemoteJob(self._requests, facts) for facts in self._requests.items("/v1/jobs", query)]

    def train(
        self,
        train: Sequence[str] = (),
        *,
        model: str | None = None,
        replay: Sequence[str] = (),
        validation: Sequence[str] = (),
        test: Sequence[str] = (),
        recipe: Mapping[str, Any] | None = None,
        parent: str | None = None,
        resume: str | None = None,
        device: str | None = None,
    ) -> RemoteJob:
        """Starts a training on slices, or resumes a stopped run; the job's result has its `run`.

        `recipe`: settings by name, as in docs/training.md. `parent`: the run or model whose weights it starts from.
        """
        slices = {"train": train, "replay": replay, "validation": validation, "test": test}
        more = {"name": model, "recipe": recipe, "parent": parent, "resume": resume, "device": device}
        return self._started("/v1/runs", slices | more)

    def tune(
        self,
        train: Sequence[str],
        *,
        tried: Sequence[str] = (),
        architectures: Sequence[str] = (),
        trials: int | None = None,
        search: str | None = None,
        model: str | None = None,
        replay: Sequence[str] = (),
        validation: Sequence[str] = (),
        test: Sequence[str] = (),
        recipe: Mapping[str, Any] | None = None,
        device: str | None = None,
    ) -> RemoteJob:
        """Starts a search for a better recipe: `tried` are KEY=LOW..HIGH or KEY=A,B; the result has the best trials."""
        slices = {"train": train, "replay": replay, "validation": validation, "test": test}
        what = {"tried": tried, "architectures": architectures, "trials": trials, "search": search}
        return self._started("/v1/runs:tune", slices | what | {"name": model, "recipe": recipe, "device": device})

    def runs(self, model: str | None = None, status: str | None = None) -> list[RunInfo]:
        """All runs, or those of a model or with a status, newest first."""
        query = {"model": model, "status": status, "limit": 1_000}
        return [_read(RunInfo, facts) for facts in self._requests.items("/v1/runs", query)]

    def run(self, run: str) -> RemoteRun:
        """The run with this id, or a unique beginning of it. Nothing is requested yet."""
        return RemoteRun(self._requests, run)

    def evaluate(
        self,
        run: str,
        slices: Sequence[str] = (),
        *,
        only: bool = False,
        costs: Mapping[str, Mapping[str, float]] | None = None,
    ) -> RemoteJob:
        """Starts an evaluation of a run on every evaluation and regression slice, and on `slices` (`only`: just these).

        The result has its `evaluation` and the metrics of every slice.
        """
        return self._started("/v1/evaluations", {"run": run, "slices": slices, "only": only, "costs": costs})

    def gate(
        self,
        candidate: str,
        baseline: str | None = None,
        *,
        policy: Mapping[str, Any] | None = None,
        evaluate: bool = False,
    ) -> RemoteJob:
        """Starts the gate: may the candidate replace the baseline (default: the promoted version)?

        `evaluate`: first evaluate both where that is missing. The result has `gate`, `outcome` (passed, failed or
        undecided) and `blocks`.
        """
        arguments = {"candidate": candidate, "baseline": baseline, "policy": policy, "evaluate": evaluate}
        return self._started("/v1/gates", arguments)

    def verdict(self, gate: str) -> dict[str, Any]:
        """A verdict of the gate with the evidence of every slice."""
        return dict(self._requests.get(f"/v1/gates/{in_path(gate, 'gate')}"))

    def models(self) -> list[ModelInfo]:
        """Every model that has registered versions, by name."""
        return [_read(ModelInfo, facts) for facts in self._requests.items("/v1/models", {"limit": 1_000})]

    def versions(self, model: str) -> list[VersionInfo]:
        """The versions of a model, the newest first."""
        path = f"/v1/models/{in_path(model, 'model', '@')}/versions"
        return [_read(VersionInfo, facts) for facts in self._requests.items(path, {"limit": 1_000})]

    def register(self, run: str, reason: str | None = None) -> VersionInfo:
        """Makes a finished run the next version of its model; brings a retired version back."""
        return _read(VersionInfo, self._requests.write("POST", "/v1/models", _given({"run": run, "reason": reason})))

    def promote(
        self,
        version: str,
        *,
        share: float | None = None,
        limits: Mapping[str, float] | None = None,
        gate: str | None = None,
        force: bool = False,
        reason: str | None = None,
    ) -> VersionInfo:
        """Puts a version NAME@V, or a run, into production if the gate allows it.

        `share`: as a canary, for this share of the images (0 to 1); the server rolls it back beyond `limits`. Raises
        RequestFailed with `reason` not_allowed if the gate does not allow it; `force` with a reason does it anyway.
        """
        body = {"share": share, "limits": limits, "gate": gate, "force": force, "reason": reason}
        return self._change(version, "promote", body)

    def rollback(self, model: str, reason: str | None = None) -> VersionInfo:
        """Takes the canary or, without one, the promoted version out of production; returns what is in production."""
        return self._change(model, "rollback", {"reason": reason})

    def shadow(self, version: str, reason: str | None = None) -> VersionInfo:
        """Lets a version NAME@V, or a run, predict in the shadow of the promoted one."""
        return self._change(version, "shadow", {"reason": reason})

    def retire(self, version: str, reason: str | None = None) -> VersionInfo:
        """Takes a version NAME@V out of use."""
        return self._change(version, "retire", {"reason": reason})

    def card(self, name: str) -> str:
        """The model card of NAME@V, of a run, or of NAME's promoted version, as Markdown."""
        path = f"/v1/models/{in_path(name, 'model', '@')}/card"
        return self._requests.send("GET", path, headers={"Accept": "text/markdown"}).body.decode()

    def _started(self, path: str, arguments: Mapping[str, Any]) -> RemoteJob:
        return RemoteJob(self._requests, self._requests.write("POST", path, _given(arguments)))

    def _change(self, name: str, change: str, body: Mapping[str, Any]) -> VersionInfo:
        path = f"/v1/models/{in_path(name, 'model', '@')}:{change}"
        return _read(VersionInfo, self._requests.write("POST", path, _given(body)))


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are not None, with lists for other sequences."""
    given = {name: value for name, value in arguments.items() if value is not None}
    return {name: [*value] if isinstance(value, tuple) else value for name, value in given.items()}


def _read(kind: type[Info], facts: Mapping[str, Any]) -> Info:
    """From the server's JSON; further facts are left out."""
    return kind(**{field.name: facts[field.name] for field in fields(kind)})


def _polls(timeout: float | None, waiting_for: str) -> Iterator[None]:
    """Yields at once and then after growing pauses. Raises TimeoutError after `timeout` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = FIRST_POLL
    while True:
        yield
        if deadline is not None and time.monotonic() + pause > deadline:
            raise TimeoutError(f"{waiting_for} had not ended after {timeout:g} s")
        time.sleep(pause)
        pause = min(LONGEST_POLL, 1.5 * pause)
