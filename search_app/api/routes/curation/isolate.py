"""/v1/isolate: active searches: from an example to all images of its kind, marked page by page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from lake.sql.tables import plain
from search_app.api import schemas, writes
from search_app.api.paging import Cursor, Key, Limit, page
from search_app.api.problems import not_found
from search_app.api.schemas import SearchId
from search_app.api.writes import Body
from search_app.backend import loaded_searches
from search_app.security import filter_bounds

if TYPE_CHECKING:
    from embeddings.search.saved_searches import SavedSearch, SearchSummary
    from search_app.api.service import Service
    from search_app.api.writes import Audit, Writes
    from search_app.backend.loaded_searches import LoadedSearch

PATH = "/v1/isolate"
PAGE, MOST_PAGE = 24, 200
MOST_MARKS = 1_000
Name = Annotated[str, Field(min_length=1, max_length=250)]
Ids = Annotated[list[Name], Field(max_length=MOST_MARKS)]
Size = Annotated[int, Query(ge=1, le=MOST_PAGE, description="images of the page")]
_HEX = "2a0986669d4b1c0b7f3e5a9c8d7e6f504132241506f7e8d9cabbac9d8e7f6051"
_STATE = {
    "search": "a1b2c3d4",
    "name": "cracks",
    "page": [_HEX],
    "progress": {"images": 1_204, "looked": 24, "found": 9, "pages": 1, "left": 31.5, "stop": False, "advice": "..."},
}


class NewSearch(Body):
    """A search to start, from images of the kind; in the whole lake, in a filter, or in a node of a tree."""

    like: Ids = Field(min_length=1, description="ids of images or predictions of the kind")
    where: str | None = Field(default=None, min_length=1, max_length=20_000, description="search images that pass")
    node: Name | None = Field(default=None, description="search the images of this node, TREE/PATH")
    embedder: Name | None = Field(default=None, description="default: the lake's first")
    name: Name | None = None
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


class Marks(Body):
    """What the user says of the page. `undo` is done first, whole clusters before single images."""

    yes: Ids = Field(default=[], description="images of the kind")
    no: Ids = Field(default=[], description="images not of the kind")
    accept: Name | None = Field(default=None, description="all unmarked images of this node are of the kind")
    refuse: Name | None = Field(default=None, description="no unmarked image of this node is of the kind")
    undo: bool = Field(default=False, description="remove the marks of the last page or cluster")


class SaveSearch(Body):
    """The slice to save what was found as."""

    name: Name
    role: Literal["train", "evaluation", "regression"] | None = None
    drop_leaks: bool = False
    identity_only: bool = False


def routes(service: Service, writer: Writes) -> APIRouter:
    router = APIRouter()
    lake = service.lake

    @router.get(PATH, responses=schemas.page_of({"id": "a1b2c3d4", "name": "cracks", "found": 9, "looked": 24}))
    def searches(limit: Limit = 100, cursor: Cursor = None) -> dict[str, Any]:
        """Every active search, the newest first."""
        from embeddings.search import saved_searches

        def key(search: SearchSummary) -> Key:
            return -round(1e6 * search.created_at.timestamp()), search.id

        part, following = page(saved_searches.list(lake), key, cursor, limit)
        return {"items": [plain(vars(search)) for search in part], "next": following}

    @router.post(
        PATH,
        response_class=Response,
        status_code=201,
        openapi_extra=writes.body(NewSearch, {"like": [_HEX], "name": "cracks"}),
        responses={201: {"description": "the search and its first page", "content": schemas.example(_STATE)}},
    )
    async def start(request: Request) -> Response:
        """Starts a search; returns its id and the first page. It is saved, and can be resumed by anyone."""

        def write(new: NewSearch, audit: Audit) -> dict[str, Any]:
            from embeddings.search import saved_searches

            if new.where is not None:
                filter_bounds.check(lake, new.where)
            options = new.model_dump(exclude={"like"})
            with service.long_work.taken():
                search = saved_searches.start(lake, examples=new.like, **options)
            audit("isolate", search.id, {"like": new.like, "node": new.node, "where": new.where})
            return _state(loaded_searches.keep(lake, search), PAGE)

        return await writer.run(request, NewSearch, write, 201)

    @router.get(PATH + "/{search_id}", responses=schemas.documented(_STATE))
    def next_page(search_id: SearchId, size: Size = PAGE) -> dict[str, Any]:
        """The next page to mark, the likeliest first: the same until marks change. And how far the search is."""
        return _state(_opened(search_id), size)

    @router.post(
        PATH + "/{search_id}/marks",
        response_class=Response,
        openapi_extra=writes.body(Marks, {"yes": [_HEX], "no": []}, {"undo": True}),
        responses=schemas.documented(_STATE | {"undone": False, "accepted": 0, "refused": 0}),
    )
    async def mark(search_id: SearchId, request: Request, size: Size = PAGE) -> Response:
        """Marks images, or whole clusters; returns the next page."""

        def write(marks: Marks, audit: Audit) -> dict[str, Any]:
            loaded = _opened(search_id)
            with loaded_searches.marking(lake, loaded) as search:
                result = {
                    "undone": search.undo() if marks.undo else False,
                    "accepted": search.accept(marks.accept) if marks.accept else 0,
                    "refused": search.refuse(marks.refuse) if marks.refuse else 0,
                }
                if marks.yes or marks.no:
                    search.mark(marks.yes, marks.no)
            audit("isolate mark", search_id, {"yes": len(marks.yes), "no": len(marks.no), **result})
            return _state(loaded, size) | result

        return await writer.run(request, Marks, write)

    @router.get(PATH + "/{search_id}/found", responses=schemas.page_of(_HEX))
    def found(search_id: SearchId, limit: Limit = 100, cursor: Cursor = None) -> dict[str, Any]:
        """image_ids marked yes, sorted."""
        loaded = _opened(search_id)
        with loaded.lock:
            names = sorted(loaded.search.positives())
        part, following = page(names, lambda name: (name,), cursor, limit)
        return {"items": part, "next": following}

    @router.post(
        PATH + "/{search_id}/slice",
        response_class=Response,
        status_code=201,
        openapi_extra=writes.body(SaveSearch, {"name": "cracks", "role": "train", "drop_leaks": True}),
        responses={
            201: {"description": "the slice", "content": schemas.example({"id": "cracks@1", "size": 40, "dropped": 0})}
        },
    )
    async def save(search_id: SearchId, request: Request) -> Response:
        """Saves the images found so far as a slice, or as its next version."""

        def write(new: SaveSearch, audit: Audit) -> dict[str, Any]:
            from embeddings.duplicates import leak_guard

            _opened(search_id)
            with service.long_work.taken():
                saved, leaks = leak_guard.create(lake, **new.model_dump(), search=search_id)
            audit("slice create", saved.id, {"kind": saved.kind, "definition": saved.definition})
            dropped = len(leaks.images) if saved.role == "train" else 0
            return {
                "id": saved.id,
                "size": saved.size,
                "role": saved.role,
                "leaks": leaks.as_dict(),
                "dropped": dropped,
            }

        return await writer.run(request, SaveSearch, write, 201)

    def _opened(search_id: str) -> LoadedSearch:
        with not_found("unknown_search"):
            return loaded_searches.with_all_marks(lake, search_id)

    return router


def _state(loaded: LoadedSearch, size: int) -> dict[str, Any]:
    with loaded.lock:
        search: SavedSearch = loaded.search
        facts = {"search": search.id, "name": search.name, "page": [*search.page(size)]}
        return plain(facts | {"progress": vars(search.progress())})  # type: ignore[no-any-return]
