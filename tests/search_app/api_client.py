"""A client of the HTTP API over a lake and a spool, in this process, for the tests of event ingest.

Nothing drains by itself: a test calls `drain`.
"""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from lake.ids import image_id
from lake.open_lake import OpenLake
from lake.spool.batch import DrainReport
from lake.spool.drain import drain
from lake.spool.spool import Spool
from search_app.api.admission import IngestLimits
from search_app.api.app import Api
from search_app.server.live_ingest import IngestSettings, LiveIngest
from tests import pictures

PROBLEM = "application/problem+json"
JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
ARROW = {"Content-Type": "application/vnd.apache.arrow.stream"}


class ApiClient:
    """A client of the API, with the lake, API and spool behind it."""

    def __init__(self, client: TestClient, lake: OpenLake, api: Api, spool: Spool) -> None:
        self.client = client
        self.lake = lake
        self.api = api
        self.spool = spool

    def drain(self) -> DrainReport:
        """Drains the spool into the lake; asserts that no event is parked."""
        report = drain(self.lake, self.spool)
        assert report is not None
        assert self.spool.parked.list() == []
        return report

    def predict(self, event: Mapping[str, Any], image: bytes | None = None, **headers: str) -> Any:
        """POST /v1/predictions: with the image as body and the event as header, or the event as JSON."""
        if image is None:
            return self.client.post("/v1/predictions", content=json.dumps(event), headers=JSON | headers)
        sent = {"Content-Type": "image/png", "Lakeloop-Event": json.dumps(event)} | headers
        return self.client.post("/v1/predictions", content=image, headers=sent)

    def batch(self, items: Sequence[Any], **headers: str) -> Any:
        """POST /v1/predictions/batch as NDJSON; text and bytes among the items are lines as they are."""
        lines = [
            i.encode() if isinstance(i, str) else i if isinstance(i, bytes) else json.dumps(i).encode() for i in items
        ]
        return self.client.post("/v1/predictions/batch", content=b"\n".join(lines), headers=NDJSON | headers)

    def upload(self, image: bytes, **headers: str) -> Any:
        """POST /v1/images."""
        return self.client.post("/v1/images", content=image, headers={"Content-Type": "image/png"} | headers)

    def feedback(self, event: Mapping[str, Any], **headers: str) -> Any:
        """POST /v1/feedback."""
        return self.client.post("/v1/feedback", content=json.dumps(event), headers=JSON | headers)

    def prediction(self, prediction_id: str) -> Any:
        """GET /v1/predictions/{id}."""
        return self.client.get(f"/v1/predictions/{prediction_id}")


@contextmanager
def api_client(lake: OpenLake, spool: Path, limits: IngestLimits | None = None) -> Iterator[ApiClient]:
    """Opens one; the spool outlives it."""
    intake = LiveIngest(lake.uri, IngestSettings(spool, limits or IngestLimits(), drain=False))
    api = Api(lake, intake)
    with TestClient(api, raise_server_exceptions=False) as client:
        yield ApiClient(client, lake, api, intake.spool)


def event(**more: Any) -> dict[str, Any]:
    """A prediction with an id of its own."""
    return {"prediction_id": str(uuid.uuid4()), "model": "solar", "label": "intact", **more}


def picture(seed: int) -> bytes:
    """A small PNG."""
    return pictures.encoded(pictures.scene(seed, 24, 16))


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def named(data: bytes) -> str:
    """The image's id."""
    return image_id(data)


def reason(answer: Any) -> tuple[int, str]:
    """Status and machine-readable reason of a refusal; asserts the form that every refusal has."""
    document = answer.json()
    assert answer.headers["content-type"] == PROBLEM
    assert set(document) == {"type", "title", "status", "detail", "reason"}
    assert document["status"] == answer.status_code
    assert document["detail"]
    return answer.status_code, document["reason"]
