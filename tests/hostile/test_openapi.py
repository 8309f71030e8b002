"""Schemathesis against the real server: every operation of its own OpenAPI document, with good requests and bad.

No answer is a fault of the server's, none has a status, type or form that the document does not name. What a valid
request is answered with is not checked here: many are refused for what a schema cannot say, such as whether bytes are
an image.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from lake import slices
from lake.access import keys
from lake.open_lake import OpenLake
from tests.conftest import Say
from tests.crash.service import ROOT, Service
from tests.hostile.conftest import Serve
from tests.lake import stock
from tests.search_app.api_client import event, named, picture

SKIPPED = "positive_data_acceptance"


class Run:
    """One run of its command; `output` is what it printed."""

    def __init__(self, service: Service, folder: Path, examples: int, phases: str, token: str | None) -> None:
        url = f"http://127.0.0.1:{service.port}"
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        image, payload = picture(1), event()
        sent = {"Content-Type": "image/png", "Lakeloop-Event": json.dumps(payload)}
        with httpx.Client(base_url=url, headers=bearer) as client:
            client.post("/v1/predictions", content=image, headers=sent).raise_for_status()
            job = client.post("/v1/jobs", json={"kind": "maintain"}).raise_for_status().json()["id"]
            document = client.get("/v1/openapi.json").json()
        self.operations = sum(len(methods) for methods in document["paths"].values())
        words = [str(Path(sys.executable).with_name("st")), "run", f"{url}/v1/openapi.json", "--url", url]
        words += ["--no-color", "--seed", "1", "--checks", "all", "--exclude-checks", SKIPPED, "--phases", phases]
        words += ["--max-examples", str(examples), "--request-timeout", "30", "--continue-on-failure"]
        words += [word for name, value in bearer.items() for word in ("--header", f"{name}:{value}")]
        hooks = {"SCHEMATHESIS_HOOKS": "tests.hostile.generated", "PYTHONPATH": str(ROOT)}
        ids = {"LAKELOOP_TEST_IMAGE": named(image), "LAKELOOP_TEST_PREDICTION": payload["prediction_id"]}
        ids["LAKELOOP_TEST_JOB"] = job
        started = time.monotonic()
        ending = threading.Event()
        other = threading.Thread(target=_end_jobs, args=(url, bearer, ending))
        other.start()
        self.done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=os.environ | hooks | ids)
        self.seconds = time.monotonic() - started
        ending.set()
        other.join()
        self.output = self.done.stdout
        with httpx.Client(base_url=url, headers=bearer) as client:
            metrics = client.get("/metrics").text
        self.statuses: dict[int, int] = {}
        for status, count in re.findall(r'lakeloop_requests_total{.*status="(\d+)"} (\d+)', metrics):
            self.statuses[int(status)] = self.statuses.get(int(status), 0) + int(count)

    def check(self, service: Service) -> str:
        """Asserts that the run has no failure; returns the counts as a line."""
        assert self.done.returncode == 0, self.output[-6_000:] + self.done.stderr[-2_000:]
        assert f"Tested: {self.operations}" in " ".join(self.output.split())
        assert not [status for status in self.statuses if status >= 500]
        assert "Traceback" not in service.output()
        (cases,) = re.findall(r"(\d+) generated", self.output)
        return f"{cases} requests to {self.operations} operations, answered {dict(sorted(self.statuses.items()))}"


def _end_jobs(url: str, headers: dict[str, str], ending: threading.Event) -> None:
    """Cancels waiting jobs: nothing runs them here, and the stream of a job's events ends only with the job."""
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        while not ending.wait(1.0):
            for job in client.get("/v1/jobs", params={"state": "waiting"}).json()["items"]:
                client.post(f"/v1/jobs/{job['id']}/cancel", json={})


def _run(lake: OpenLake, serve: Serve, folder: Path, say: Say, examples: int, phases: str, with_key: bool) -> None:
    stock.add(lake, range(3))
    slices.create(lake, "known", where="true")
    token = keys.create(lake, "schemathesis", ["admin"])[1] if with_key else None
    service = serve(lake, "--jobs", "0", *(["--require-key"] if with_key else []))
    run = Run(service, folder, examples, phases, token)
    counts = run.check(service)
    say(f"schemathesis, {'with a key' if with_key else 'open'}: {counts}; 0 failures, {run.seconds:.0f} s")


def test_every_operation_responds_as_documented(
    lake_of_columns: OpenLake, serve: Serve, tmp_path: Path, say: Say
) -> None:
    _run(lake_of_columns, serve, tmp_path, say, 2, "examples,fuzzing,stateful", with_key=False)


@pytest.mark.soak
def test_every_operation_responds_to_a_key_as_documented(
    lake_of_columns: OpenLake, serve: Serve, tmp_path: Path, say: Say
) -> None:
    _run(lake_of_columns, serve, tmp_path, say, 1, "coverage", with_key=True)


@pytest.mark.soak
@pytest.mark.parametrize("with_key", [False, True])
def test_every_operation_responds_as_documented_a_thousand_times(
    lake_of_columns: OpenLake, serve: Serve, tmp_path: Path, say: Say, with_key: bool
) -> None:
    _run(lake_of_columns, serve, tmp_path, say, 1_000, "examples,coverage,fuzzing,stateful", with_key)
