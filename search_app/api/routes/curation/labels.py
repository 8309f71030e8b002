"""/v1/labels: reads the labels of images or of a slice, and writes labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from lake import slices
from lake.errors import BadInput
from lake.labels import label_events
from lake.sql import connections
from lake.sql.tables import plain
from search_app.api import bodies, schemas, writes
from search_app.api.paging import Cursor, Limit, page, read_cursor
from search_app.api.problems import not_found
from search_app.api.writes import Body

if TYPE_CHECKING:
    from search_app.api.service import Service
    from search_app.api.writes import Audit, Writes

PATH = "/v1/labels"
MOST_LABELS = 1_000
MOST_IMAGES = 100
ImageName = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_HEX = "2a0986669d4b1c0b7f3e5a9c8d7e6f504132241506f7e8d9cabbac9d8e7f6051"
_LABEL = {"image_id": _HEX, "label": "cracked", "annotator": "ann"}
_BOXES = {"image_id": _HEX, "boxes": [{"label": "car", "bbox": [12, 40, 80, 44]}]}
_EXAMPLE = {
    "event_id": "5e1ab3c8-6f0e-4b7e-9c39-1a9c1f4f7a10",
    "timestamp": "2026-09-14T08:12:44Z",
    "task": "classification",
    "boxes": None,
    "masks": None,
    "origin": "human",
    "model_version": None,
    "incomplete": False,
    "crowd_boxes": None,
    "crowd_masks": None,
    "source": None,
    **_LABEL,
}


class NewLabels(Body):
    """Labels to write, all or none. Boxes and masks are as in a prediction log."""

    labels: list[dict[str, Any]] = Field(
        min_length=1,
        max_length=MOST_LABELS,
        description=f"each has {', '.join(label_events.FIELDS)}; needed: image_id, and label, boxes or masks",
    )


def routes(service: Service, writer: Writes) -> APIRouter:
    router = APIRouter()
    lake = service.lake

    @router.get(PATH, responses={**schemas.page_of(_EXAMPLE), 404: {"description": "the slice is unknown"}})
    def read(
        slice_name: Annotated[str | None, Query(alias="slice", min_length=1, max_length=250)] = None,
        image_id: Annotated[
            list[ImageName] | None, Query(max_length=MOST_IMAGES, description="repeat for more")
        ] = None,
        task: Literal["classification", "detection", "segmentation"] | None = None,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> dict[str, Any]:
        """Labels by image_id and task, `limit` images a page: today's, or those that a slice was frozen with.

        Without `slice` or `image_id`: of all images that have a label.
        """
        if slice_name is not None and image_id is not None:
            raise BadInput("give slice or image_id, not both")
        if slice_name is not None:
            table, following = _of_slice(slice_name, cursor, limit)
        else:
            names = _labelled(cursor, limit) if image_id is None else sorted(set(image_id))
            part, following = page(names, lambda name: (name,), cursor, limit)
            table = _current(part)
        rows = [row for row in table.to_pylist() if task in (None, row["task"])]
        rows.sort(key=lambda row: (row["image_id"], row["task"]))
        return {"items": plain(rows), "next": following}

    @router.post(
        PATH,
        response_class=Response,
        status_code=201,
        openapi_extra=writes.body(NewLabels, {"labels": [_LABEL, _BOXES]}),
        responses={
            201: {
                "description": "all are in the lake",
                "content": schemas.example({"event_ids": [_EXAMPLE["event_id"]], "new": 1}),
            }
        },
    )
    async def write(request: Request) -> Response:
        """Writes up to 1,000 labels, all or none. `annotator` is by default the id of the access key."""
        key_id = bodies.key_id(request.scope)

        def write(new: NewLabels, audit: Audit) -> dict[str, Any]:
            written = label_events.write(lake, new.labels, key_id)
            audit("labels write", None, {"labels": len(written.event_ids), "new": written.new})
            clamped = {"clamped": written.clamped} if written.clamped else {}
            return {"event_ids": written.event_ids, "new": written.new, **clamped}

        return await writer.run(request, NewLabels, write, 201)

    def _of_slice(name: str, cursor: str | None, limit: int) -> tuple[pa.Table, str | None]:
        with not_found("unknown_slice"):
            slice_ = slices.get(lake, name)
        contents = slices.contents(lake, slice_)
        part, following = page(contents["image_id"].to_pylist(), lambda name: (name,), cursor, limit)
        contents = contents.filter(pc.is_in(contents["image_id"], pa.array(list(part), pa.string())))
        if contents["label_events"].null_count:  # made before labels were frozen
            return _current(part), following
        events = pc.list_flatten(contents["label_events"]).to_pylist()
        columns = [field.name for field in lake.dataset("labels").schema]
        return lake.look_up("labels", columns, "event_id", events), following

    def _current(names: Any) -> pa.Table:
        query = "SELECT * FROM labels_current WHERE image_id IN (SELECT unnest(?::VARCHAR[]))"
        return connections.query(lake, query, [list(names)])

    def _labelled(cursor: str | None, limit: int) -> list[str]:
        after = str(read_cursor(cursor)[0]) if cursor is not None else ""
        query = "SELECT DISTINCT image_id FROM labels WHERE image_id > ? ORDER BY image_id LIMIT ?"
        names: list[str] = connections.query(lake, query, [after, limit + 1])["image_id"].to_pylist()
        return names

    return router
