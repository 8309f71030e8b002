"""GET /v1/exports/{name}: a slice's export, as the app made it, in one file."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from lake.slices import kept_exports
from search_app.api.problems import Problem

if TYPE_CHECKING:
    from search_app.api.service import Service

ZIP = "application/zip"


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/exports/{export_name}", response_class=StreamingResponse)
    def export(export_name: str) -> StreamingResponse:
        """The files of a finished export as a ZIP archive, made while it is sent."""
        found = kept_exports.archive(service.lake, export_name)
        if found is None:
            raise Problem(404, "unknown_export", f"no finished export {export_name[:100]!r} lies with the lake")
        named = f"attachment; filename*=UTF-8''{quote(export_name)}.zip"
        headers = {"Content-Disposition": named, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return StreamingResponse(found, media_type=ZIP, headers=headers)

    return router
