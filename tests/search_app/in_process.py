"""The client's requests, made to a server in the same process."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.testclient import TestClient

from lake.client.delivery import HttpResponse
from lake.client.json_requests import JsonRequests, failure_of


class InProcess(JsonRequests):
    """Without a socket, a retry or a pause."""

    def __init__(self, client: TestClient) -> None:
        super().__init__("http://testserver", lambda: None, 5.0)
        self.client = client

    def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> HttpResponse:
        answer = self.client.request(method, path, content=body, headers=self._headers(headers))
        response = HttpResponse(answer.status_code, None, answer.headers.get("content-type", ""), answer.content)
        if answer.status_code >= 300:
            raise failure_of(response)
        return response

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        yield io.BytesIO(self.send("GET", path, headers=headers).body)
