"""The HTTP API over a real lake: pictures by URL, records, query images, refusals."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

import lake
from lake.errors import BadInput
from lake.ingest.ingest import ingest
from search_app.api.app import Api
from search_app.api.bodies import IMAGE_BYTES as UPLOAD_LIMIT
from search_app.backend.query_images import QueryImages
from search_app.server import server
from tests.search_app.shapes import Shapes

UNKNOWN = "0" * 64
PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def client(shapes: Shapes) -> Iterator[TestClient]:
    with TestClient(Api(lake.open(shapes.uri))) as client:
        yield client


def test_a_thumbnail_is_a_small_jpeg_to_be_kept_for_ever(client: TestClient, shapes: Shapes) -> None:
    answer = client.get(f"/v1/thumbnails/{shapes.ids[0]}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert max(Image.open(io.BytesIO(answer.content)).size) <= 256


def test_a_known_picture_is_not_sent_again(client: TestClient, shapes: Shapes) -> None:
    first = client.get(f"/v1/thumbnails/{shapes.ids[0]}")
    again = client.get(f"/v1/thumbnails/{shapes.ids[0]}", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_an_image_is_the_stored_bytes(client: TestClient, shapes: Shapes) -> None:
    answer = client.get(f"/v1/images/{shapes.ids[3]}")
    assert answer.content == shapes.files[3].read_bytes()
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; frame")


@pytest.mark.parametrize("path", ["thumbnails", "images", "records", "queries"])
@pytest.mark.parametrize(
    ("wrong", "status"),
    [(UNKNOWN, 404), ("abc", 422), ("A" * 64, 422), ("%2e%2e%2fetc%2fpasswd", 404), ("' or 1=1", 422)],
)
def test_a_bad_id_is_a_problem_and_never_a_crash(client: TestClient, path: str, wrong: str, status: int) -> None:
    answer = client.get(f"/v1/{path}/{wrong}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["status"] == status


def test_formats_browsers_do_not_show_come_as_jpeg_when_viewed(tmp_path: Path) -> None:
    deep = Image.new("I;16", (40, 30), 30_000)
    (tmp_path / "in").mkdir()
    deep.save(tmp_path / "in" / "deep.png")
    Image.new("CMYK", (40, 30)).save(tmp_path / "in" / "print.tif")
    opened = lake.create(str(tmp_path / "lake"))
    ingest(opened, tmp_path / "in", "folder", workers=1)
    formats = opened.sql("SELECT image_id, format FROM images").to_pylist()
    assert {row["format"] for row in formats} == {"PNG", "TIFF"}
    with TestClient(Api(opened)) as client:
        for row in formats:
            stored = client.get(f"/v1/images/{row['image_id']}")
            viewed = client.get(f"/v1/images/{row['image_id']}?view=1")
            assert stored.headers["content-type"] == f"image/{row['format'].lower()}"
            assert viewed.headers["content-type"] == "image/jpeg"
            assert Image.open(io.BytesIO(viewed.content)).mode == "RGB"
            assert stored.headers["etag"] != viewed.headers["etag"]


def test_a_record_has_everything_about_one_image(client: TestClient, shapes: Shapes) -> None:
    record = client.get(f"/v1/records/{shapes.ids[0]}").json()
    answer = record["predictions"][0]
    assert (record["truth"], answer["label"], answer["confidence"]) == ("circle", "square", 0.5)
    assert answer["metadata"]["camera"] == 0
    assert answer["timestamp"] == "2026-09-01T12:00:00Z"
    assert sorted((entry["score"], entry["label"]) for entry in answer["scores"])[-1] == (0.9, "square")
    assert record["labels"][0]["label"] == "circle"
    assert not any(name.startswith("emb_") for name in answer)


def test_a_query_image_is_kept_by_its_content(client: TestClient, shapes: Shapes) -> None:
    data = shapes.files[0].read_bytes()
    first = client.post("/v1/queries", content=data, headers={"Content-Type": "image/jpeg"})
    again = client.post("/v1/queries", content=data, headers={"Content-Type": "image/jpeg"})
    assert (first.status_code, first.json()) == (201, again.json())
    response = client.get(f"/v1/queries/{first.json()['query_id']}")
    assert Image.open(io.BytesIO(response.content)).size == Image.open(io.BytesIO(data)).size
    assert (Path(shapes.uri) / "queries" / f"{first.json()['query_id']}.jpg").exists()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"GIF87a not really", "image/gif", 422),
        (b"", "image/png", 422),
        (b"<svg/>", "image/svg+xml", 422),
        (b"text", "text/plain", 415),
        (b"x" * (UPLOAD_LIMIT + 1), "image/jpeg", 413),
    ],
)
def test_a_bad_upload_is_refused_with_its_reason(client: TestClient, body: bytes, kind: str, status: int) -> None:
    answer = client.post("/v1/queries", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["detail"]


def test_an_upload_without_a_length_is_cut_off_at_the_limit(client: TestClient) -> None:
    chunks = (b"x" * 2**20 for _ in range(UPLOAD_LIMIT // 2**20 + 2))
    assert client.post("/v1/queries", content=chunks, headers={"Content-Type": "image/jpeg"}).status_code == 413


def test_only_the_newest_query_images_are_kept(tmp_path: Path) -> None:
    queries = QueryImages(tmp_path / "queries", keep=2)
    names = [queries.put(data) for data in (b"1", b"2", b"3")]
    assert [queries.get(name) for name in names] == [None, b"2", b"3"]
    assert queries.get("../secrets") is None


def test_status_and_health(client: TestClient, shapes: Shapes) -> None:
    assert client.get("/v1/status").json()["images"] == len(shapes.ids)
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ok"
    assert client.get("/v1/nothing").headers["content-type"] == PROBLEM


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Host": "127.0.0.1:8501"}, 200),
        ("GET", {"Host": "localhost"}, 200),
        ("GET", {"Host": "[::1]:8501"}, 200),
        ("GET", {"Host": "evil.example"}, 403),
        ("GET", {"Host": "127.0.0.1.evil.example:8501"}, 403),
        ("GET", {"Host": ""}, 403),
        ("POST", {"Host": "localhost:8501", "Origin": "http://localhost:8501"}, 415),
        ("POST", {"Host": "localhost:8501", "Origin": "http://evil.example"}, 403),
        ("POST", {"Host": "localhost:8501", "Origin": "http://localhost:9999"}, 403),
        ("POST", {"Host": "localhost:8501", "Origin": "null"}, 403),
    ],
)
def test_only_the_servers_own_names_get_a_response(
    shapes: Shapes, method: str, headers: dict[str, str], status: int
) -> None:
    with TestClient(server.make_server(Api(lake.open(shapes.uri)), ui=False)) as client:
        path = "/healthz" if method == "GET" else "/v1/queries"
        answer = client.request(method, path, headers=headers)
    assert answer.status_code == status


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org"])
def test_it_does_not_listen_for_other_machines(shapes: Shapes, host: str) -> None:
    with pytest.raises(BadInput, match="no access keys yet"):
        server.serve(shapes.uri, host=host)


def test_a_taken_port_has_a_clear_error(shapes: Shapes) -> None:
    taken = server._listen("127.0.0.1", 0)
    with taken, pytest.raises(BadInput, match="--port"):
        server.serve(shapes.uri, port=taken.getsockname()[1])
