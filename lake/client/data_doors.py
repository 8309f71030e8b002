"""The doors of `Client` to a server's lake: slices, search, SQL, labels, active searches, metrics.

Each call waits for the server, and raises RequestFailed if it refuses or does not respond.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lake.client.json_requests import in_path

if TYPE_CHECKING:
    import pyarrow as pa

    from lake.client.events import Image
    from lake.client.json_requests import JsonRequests
    from lake.client.remote_slices import RemoteSlice, SliceInfo

ARROW = "application/vnd.apache.arrow.stream"
MOST_LABELS = 1_000
UPLOADS = 8  # at the same time
# The server cuts a result off at 256 MiB, at the end of a batch.
MOST_RESULT_BYTES = 240 << 20
MetricsKind = Literal["accuracy", "calibration", "confusion", "sizes"]


@dataclass(frozen=True)
class SearchState:
    """Where an active search is. `page`: image_ids to mark, the likeliest first; empty if all are marked.

    `looked`: images shown and marked; `found`: marked yes; `left`: estimate of how many remain, None until a yes and a
    no are marked; `stop`: whether you can stop; `advice`: the same in a sentence.
    """

    page: Sequence[str]
    images: int
    looked: int
    found: int
    left: float | None
    stop: bool
    advice: str


class RemoteSearch:
    """An active search on the server: look at a page, mark it, get the next; at the end save what was found."""

    def __init__(self, requests: JsonRequests, search_id: str) -> None:
        self._requests = requests
        self.id = search_id
        self._path = f"/v1/isolate/{search_id}"

    def state(self, size: int = 24) -> SearchState:
        """The next page, of `size` images, and how far the search is. The same until marks change."""
        return _state(self._requests.get(self._path, {"size": size}))

    def mark(self, yes: Sequence[str] = (), no: Sequence[str] = (), size: int = 24) -> SearchState:
        """Marks images of the kind, and others; returns the next page."""
        return self._marked({"yes": [*yes], "no": [*no]}, size)

    def accept(self, node: str, size: int = 24) -> SearchState:
        """Marks all unmarked images of a cluster (TREE/PATH) yes."""
        return self._marked({"accept": node}, size)

    def refuse(self, node: str, size: int = 24) -> SearchState:
        """Marks all unmarked images of a cluster (TREE/PATH) no."""
        return self._marked({"refuse": node}, size)

    def undo(self, size: int = 24) -> SearchState:
        """Removes the marks of the last page or cluster."""
        return self._marked({"undo": True}, size)

    def found(self) -> list[str]:
        """image_ids marked yes, sorted."""
        return list(self._requests.items(f"{self._path}/found", {"limit": 1_000}))

    def save(self, name: str, *, role: str | None = None, drop_leaks: bool = False) -> RemoteSlice:
        """Saves what was found as a slice, or as its next version; returns that version."""
        from lake.client.remote_slices import RemoteSlice

        body = {"name": name, "role": role, "drop_leaks": drop_leaks}
        return RemoteSlice(self._requests, self._requests.write("POST", f"{self._path}/slice", body)["id"])

    def _marked(self, marks: Mapping[str, Any], size: int) -> SearchState:
        return _state(self._requests.write("POST", f"{self._path}/marks?size={size}", marks))


class DataDoors:
    """Part of `Client`, which sets `_requests`."""

    _requests: JsonRequests

    def slices(self, newest: bool = False) -> list[SliceInfo]:
        """Every version of every slice, by name, newest first; `newest`: only the newest version of each."""
        from lake.client.remote_slices import PATH, SliceInfo

        return [SliceInfo.of(facts) for facts in self._requests.items(PATH, {"newest": newest, "limit": 1_000})]

    def slice(self, name: str) -> RemoteSlice:
        """The slice NAME, NAME@VERSION or NAME@TAG. Nothing is requested yet."""
        from lake.client.remote_slices import RemoteSlice

        return RemoteSlice(self._requests, name)

    def search(
        self,
        ids: Sequence[str] = (),
        *,
        unlike: Sequence[str] = (),
        image: Image | None = None,
        text: str | None = None,
        k: int = 20,
        where: str | None = None,
        embedder: str | None = None,
        columns: Sequence[str] = (),
    ) -> list[dict[str, Any]]:
        """The `k` images most similar to ids (averaged, away from `unlike`), an image or a text, the best first.

        A row has `image_id`, `prediction_id`, `similarity` (-1 to 1) and the `columns`.
        """
        from lake.client.events import image_bytes

        body: dict[str, Any] = {"ids": [*ids], "unlike": [*unlike], "k": k, "columns": [*columns]}
        body |= {"text": text, "where": where, "embedder": embedder}
        if image is not None:
            body["image_base64"] = base64.b64encode(image_bytes(image)).decode()
        return list(self._requests.write("POST", "/v1/search", body)["results"])

    def sql(
        self,
        query: str,
        parameters: Mapping[str, Any] | Sequence[Any] | None = None,
        *,
        timeout: float = 30.0,
        max_rows: int = 1_000_000,
    ) -> pa.Table:
        """The result of one SELECT as an Arrow table; needs pyarrow. `timeout`: seconds until it must end, up to 300.

        Raises RequestFailed, also if there are `max_rows` rows or more, or 240 MiB (`reason` is truncated).
        """
        import json

        import pyarrow as pa

        from lake.client.json_requests import RequestFailed

        body = {"sql": query, "parameters": parameters or {}, "timeout": timeout, "max_rows": max_rows}
        response = self._requests.send("POST", "/v1/sql", json.dumps(body).encode(), {"Accept": ARROW})
        try:
            table = pa.ipc.open_stream(response.body).read_all()
        except (pa.ArrowException, OSError) as error:
            raise RequestFailed(f"the result broke off: {error}", response.status, "broken") from error
        if table.num_rows >= max_rows or len(response.body) > MOST_RESULT_BYTES:
            size = f"{table.num_rows:,} rows and {len(response.body) >> 20:,} MiB"
            raise RequestFailed(f"the result has {size} or more; add a LIMIT", response.status, "truncated")
        return table

    def add_images(self, images: Iterable[Image]) -> list[str]:
        """Uploads images by themselves, without a prediction; returns their image_ids, in order.

        Each is the content of an image file or its path. They are safe on the server's disk at once, and in the lake
        within seconds; an image that it has adds nothing.
        """
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(UPLOADS) as pool:
            return [*pool.map(self._add_image, images)]

    def _add_image(self, image: Image) -> str:
        import json

        from lake.client.events import image_bytes

        response = self._requests.send("POST", "/v1/images", image_bytes(image), {"Content-Type": "image/*"})
        return str(json.loads(response.body)["image_id"])

    def set_duplicate_threshold(self, embedder: str, threshold: float) -> None:
        """Saves the cosine, -1 to 1, from which two images of the lake count as near-duplicates."""
        path = f"/v1/embedders/{in_path(embedder, 'embedder', '@')}/threshold"
        self._requests.write("PUT", path, {"threshold": threshold})

    def labels(self, image_ids: Sequence[str] | None = None, *, slice: str | None = None) -> Iterator[dict[str, Any]]:
        """Labels by image_id and task: of images (at most 100), of a slice as it was frozen, or of all images."""
        query = {"image_id": None if image_ids is None else [*image_ids], "slice": slice, "limit": 1_000}
        return self._requests.items("/v1/labels", query)

    def add_labels(self, labels: Sequence[Mapping[str, Any]]) -> list[str]:
        """Writes labels; returns their event_ids. Each has `image_id` and one of `label`, `boxes` and `masks`;
        `incomplete=True` says that the image may show more, so it is neither trained on nor evaluated.

        They are sent a thousand at a time; each thousand is written as a whole or not at all.
        """
        event_ids: list[str] = []
        for start in range(0, len(labels), MOST_LABELS):
            part = [dict(label) for label in labels[start : start + MOST_LABELS]]
            event_ids += self._requests.write("POST", "/v1/labels", {"labels": part})["event_ids"]
        return event_ids

    def isolate(
        self,
        like: Sequence[str] = (),
        *,
        search: str | None = None,
        where: str | None = None,
        node: str | None = None,
        embedder: str | None = None,
        name: str | None = None,
        seed: int = 0,
    ) -> RemoteSearch:
        """Starts an active search from images of the kind, `like`; or opens the saved `search` with this id."""
        if search is not None:
            return RemoteSearch(self._requests, search)
        body = {"like": [*like], "where": where, "node": node, "embedder": embedder, "name": name, "seed": seed}
        return RemoteSearch(self._requests, self._requests.write("POST", "/v1/isolate", body)["search"])

    def metrics(
        self,
        by: Sequence[str] = (),
        *,
        kind: MetricsKind = "accuracy",
        where: str | None = None,
        slice: str | None = None,
        models: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Rates with 95 % intervals by up to two dimensions; or calibration, confusion, or sizes of objects."""
        path = "/v1/metrics" if kind == "accuracy" else f"/v1/metrics/{kind}"
        query = {"by": [*by] or None, "where": where, "slice": slice, "model": [*models] or None}
        return dict(self._requests.get(path, query))


def _state(document: Mapping[str, Any]) -> SearchState:
    progress = document["progress"]
    names = ("images", "looked", "found", "left", "stop", "advice")
    return SearchState(document["page"], **{name: progress[name] for name in names})
