"""GET /v1/exports/{name}: downloads a slice's export, created in the app, as one file."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from lake.slices import kept_exports
from search_app.api.problems import Problem
from search_app.api.schemas import BINARY, ExportName

if TYPE_CHECKING:
    from search_app.api.service import Service

ZIP = "application/zip"


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/v1/exports/{export_name}",
        response_class=StreamingResponse,
        responses={200: {"description": "the archive", "content": {ZIP: {"schema": BINARY}}}},
    )
    def export(export_name: ExportName) -> StreamingResponse:
        """The files of a finished export as a ZIP archive, made while it is sent."""
        archive = kept_exports.archive(service.lake, export_name)
        if archive is None:
            raise Problem(404, "unknown_export", f"the lake has no finished export {export_name[:100]!r}")
        disposition = f"attachment; filename*=UTF-8''{quote(export_name)}.zip"
        headers = {"Content-Disposition": disposition, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return StreamingResponse(archive, media_type=ZIP, headers=headers)

    return router
