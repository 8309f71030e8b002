"""No answer of the server says where its files are: not the lake's folder, not the home, not the installation."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from lake import open_lake, slices
from lake.access import keys
from lake.jobs import live_state, record
from lake.jobs.job import Starter
from lake.open_lake import OpenLake
from search_app.api.app import Api
from search_app.security.access import AccessPolicy
from search_app.security.server_paths import ServerPaths
from search_app.server.server import make_server
from tests.lake import stock

ROOT = Path(__file__).parents[3]
PERSON = Starter(user="ann")


@pytest.fixture(scope="module")
def lake_(tmp_path_factory: pytest.TempPathFactory) -> OpenLake:
    """With a job of each end that named files: in its arguments, its error, its result."""
    lake = open_lake.create(str(tmp_path_factory.mktemp("whose é") / "the lake"), embedders=["x"])
    stock.bind(lake)
    lake = open_lake.open(lake.uri)
    stock.add(lake, range(6))
    stock.embed(lake, range(6))
    slices.create(lake, "night", ids=[stock.image_id(n) for n in range(5)])
    live_state.of(lake).set_limits(0, None)
    for error in (f"cannot read {lake.uri}/images.lance: no such file", f"{Path.home()}/x: not a regular file", None):
        job = record.submit(lake, "ingest", {"path": f"{Path.home()}/pictures of ann/a.csv"}, PERSON)
        out = {"out": f"{lake.uri}/exports/night@1.list", "files": [f"{tempfile.gettempdir()}/x.part", str(ROOT)]}
        if error is None:
            record.ended(lake, record.started(lake, job), "done", result=out)
        else:
            record.ended(lake, record.started(lake, job), "failed", error=error)
    return lake


def opened(lake: OpenLake) -> TestClient:
    """A server that needs keys, and a client with one that only reads."""
    headers = {"Authorization": f"Bearer {keys.create(lake, 'reader', ['read'])[1]}"}
    server = make_server(Api(lake), ui=False, hosts=["testserver"], policy=AccessPolicy(require_key=True))
    return TestClient(server, raise_server_exceptions=False, headers=headers)


@pytest.fixture(scope="module")
def client(lake_: OpenLake) -> Iterator[TestClient]:
    with opened(lake_) as client:
        yield client


def secrets(lake: OpenLake) -> list[str]:
    folders = [lake.uri, str(Path(lake.uri).parent), str(Path.home()), tempfile.gettempdir(), str(ROOT), os.getcwd()]
    return [text for folder in folders if len(folder) > 1 for text in (f"{folder}", json.dumps(folder)[1:-1])]


def operations(client: TestClient) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    for path, methods in client.get("/v1/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation.get("parameters", [])


def values(name: str, lake: OpenLake, jobs: list[str]) -> list[str]:
    """What is there, what is not, and what is none: a path among them."""
    there = {"job": jobs, "slice_name": ["night", "night@1"], "slice": ["night"], "image_id": [stock.image_id(0)],
             "prediction_id": [stock.prediction_id(0)], "embedder": ["x"], "export_name": ["night@1.list"],
             "from": ["night@1"]}.get(name, [])  # fmt: skip
    return [*there, "nope", f"{lake.uri}/x"]


def test_no_route_names_the_servers_folders(client: TestClient, lake_: OpenLake) -> None:
    jobs = [job["id"] for job in client.get("/v1/jobs").json()["items"]]
    assert len(jobs) == 3
    answered = 0
    for method, path, parameters in operations(client):
        inner = [p["name"] for p in parameters if p["in"] == "path"]
        query = {p["name"]: values(p["name"], lake_, jobs)[0] for p in parameters if p["in"] == "query"}
        needed = {p["name"]: query[p["name"]] for p in parameters if p["in"] == "query" and p.get("required")}
        for number in range(len(values(inner[0], lake_, jobs)) if inner else 1):
            target = path
            for name in inner:
                options = values(name, lake_, jobs)
                target = target.replace("{" + name + "}", options[min(number, len(options) - 1)])
            for params in [needed] if query == needed else [needed, query]:
                body = {"content": b"{", "headers": {"Content-Type": "application/json"}}
                more: dict[str, Any] = {} if method == "GET" else body
                response = client.request(method, target, params=params, **more)
                answered += 1
                for secret in secrets(lake_):
                    assert secret not in response.text, (method, target, response.text)
    assert answered > 120


def test_errors_of_a_damaged_lake_name_no_folder(lake_: OpenLake, tmp_path: Path) -> None:
    shutil.copytree(lake_.uri, tmp_path / "the lake")
    damaged = open_lake.open(str(tmp_path / "the lake"))
    with opened(damaged) as client:
        for table in ("samples", "images", "jobs", "slices"):
            shutil.rmtree(tmp_path / "the lake" / f"{table}.lance")
        refused = 0
        for path in ("/v1/status", "/v1/jobs", "/v1/slices", "/v1/slices/night", "/v1/metrics", "/v1/arrivals",
                     f"/v1/images/{stock.image_id(0)}", f"/v1/records/{stock.image_id(0)}"):  # fmt: skip
            response = client.get(path)
            refused += response.status_code >= 500
            assert not any(secret in response.text for secret in secrets(damaged)), response.text
    assert refused


def test_the_command_line_still_names_them(lake_: OpenLake) -> None:
    from lake.jobs import current

    [failed] = [job for job in current.list(lake_) if job.error and "images.lance" in job.error]
    assert lake_.uri in str(failed.error)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("cannot read LAKE/images.lance/data/x: gone", "cannot read <lake>/images.lance/data/x: gone"),
        ("LAKE is no lake; LAKE-2 is none", "<lake> is no lake; LAKE-2 is none"),
        ("/etc/ssl/cert.pem, /usr/lib/x.so", "…/cert.pem, …/x.so"),
        ("file:///etc/passwd", "file://…/passwd"),
        ("GET /v1/jobs/x; see https://example.org/etc/hosts", "GET /v1/jobs/x; see https://example.org/etc/hosts"),
        ("a/b of 3/4, image/png, and /", "a/b of 3/4, image/png, and /"),
    ],
)
def test_what_is_left_of_a_text(tmp_path: Path, text: str, hidden: str) -> None:
    lake = str(tmp_path / "lake")
    paths = ServerPaths(lake)
    found = paths.hidden(text.replace("LAKE", lake))
    assert found == hidden.replace("LAKE-2", "…/lake-2")


@given(st.recursive(st.text(max_size=6), lambda inner: st.lists(inner, max_size=3), max_leaves=6), st.booleans())
@settings(max_examples=25)
def test_json_stays_json(value: Any, ascii: bool) -> None:
    paths = ServerPaths("/srv/der Käse/lake")

    def around(item: Any) -> Any:
        return [around(part) for part in item] if isinstance(item, list) else f"{item} /srv/der Käse/lake/{item}"

    body = json.dumps(around(value), ensure_ascii=ascii).encode()
    hidden = paths.hidden_in(body)
    json.loads(hidden)
    assert b"der K" not in hidden
