"""Who may do what on a page: every function that writes for one, called as every identity that the gate knows.

Not the buttons: a hidden or disabled button is still called by a message over the websocket. The functions are those
that the code marks as handlers, so a new one is called by itself, and one that no call here knows fails.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from lake import open_lake, slices
from lake.access import keys
from lake.access.keys import Keyring
from lake.jobs import record
from lake.jobs.job import Job, Starter
from lake.open_lake import OpenLake
from lake.storage import store
from search_app.jobs import kinds, supervisor
from search_app.security.access import Access
from search_app.security.login import Login
from search_app.security.page_actions import ACTIONS, OF_KIND, NotAllowed
from tests import access_table
from tests.conftest import Say
from tests.lake import stock
from tests.search_app.asgi import Socket, ask
from tests.search_app.security.test_oidc import OidcWithClaims

pytest.importorskip("streamlit")
HANDLERS = {f"{handler.module}.{handler.function}": handler.action for handler in access_table.handlers()}


@dataclass
class World:
    """A lake with something of everything that a handler writes, and names that nobody has used yet."""

    lake: OpenLake
    node: str
    search: str
    map: str
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def slice(self, **definition: Any) -> slices.Slice:
        made = slices.create(self.lake, f"s{next(self.numbers)}", **(definition or {"ids": [stock.image_id(1)]}))
        return slices.get(self.lake, made.id)

    def run(self, model: str | None = None) -> Any:
        from training.registry import runs
        from training.registry.recipe import Recipe

        run = runs.create(
            self.lake, model or f"m{next(self.numbers)}", Recipe(kind="probe"), data={}, classes=["a", "b"]
        )
        path = runs.folder(self.lake, run.id) / "model.safetensors"
        path.write_bytes(run.id.encode())
        return runs.end(self.lake, run, "done", artifacts={"model": runs.artifact(self.lake, path)})

    def version(self) -> Any:
        from training.registry import promotion

        run = self.run()
        promotion.register(self.lake, run.id)
        return run

    def promoted_twice(self) -> str:
        """A model with two promoted versions."""
        from training.registry import promotion

        first = self.run()
        promotion.promote(self.lake, first.id)
        promotion.promote(self.lake, self.run(first.model).id, reason="a test", force=True)
        return str(first.model)

    def job(self, kind: str, cancelled: bool = False) -> Job:
        job = record.submit(self.lake, kind, {}, Starter(user="anna"))
        return record.cancel(self.lake, job.id, Starter(user="anna")) if cancelled else job

    def loaded(self) -> Any:
        from search_app.ui.data import active_searches

        return active_searches.opened(self.search, True)

    def written(self) -> dict[str, int]:
        """How many versions each table has."""
        root = Path(self.lake.uri)
        # A commit of another thread that is not finished has a file of another name.
        return {table.stem: len([*(table / "_versions").glob("*.manifest")]) for table in root.glob("*.lance")}


# What a handler is called with: made anew for a call that is done, and once for all that are refused.
Prepare = Callable[[World], tuple[Any, ...]]


def _page_of_marks(world: World) -> tuple[Any, ...]:
    from search_app.ui.components.marking import MarkingAction, token_of
    from search_app.ui.pages.isolate import PAGE

    loaded = world.loaded()
    shown = loaded.search.page(PAGE)
    return loaded, MarkingAction("mark", token_of(loaded.search.id, shown), list(shown[:1]))


def _marked(world: World) -> tuple[Any, ...]:
    loaded = world.loaded()
    loaded.search.mark(no=loaded.search.page(1))
    return (loaded,)


def _map_with_a_new_image(world: World) -> tuple[Any, ...]:
    new = 100 + next(world.numbers)
    stock.add(world.lake, [new])
    stock.embed(world.lake, [new])
    return (world.map,)


def _tagged(world: World) -> tuple[Any, ...]:
    slice_ = world.slice()
    slices.tag(world.lake, slice_, "gold")
    return slice_, "gold"


def _split(world: World) -> tuple[Any, ...]:
    from embeddings.clusters.drilldown import cluster

    cluster(world.lake, node=world.node, method="kmeans", k=2)
    return (world.node,)


# Of a job twice, since its kind says which scope it needs.
CALLS: dict[str, Prepare] = {
    "components.grid.save_slice": lambda world: (f"s{next(world.numbers)}", {"ids": [stock.image_id(0)]}),
    "data.active_searches.begin": lambda world: ({"examples": [stock.image_id(0)]},),
    "data.jobs.retry": lambda world: (world.job("cluster", cancelled=True),),
    "data.jobs.retry maintain": lambda world: (world.job("maintain", cancelled=True),),
    "data.jobs.stop": lambda world: (world.job("cluster"),),
    "data.jobs.stop maintain": lambda world: (world.job("maintain"),),
    "data.jobs.submit": lambda world: ("cluster", {"arguments": {"seed": next(world.numbers)}}),
    "data.jobs.submit maintain": lambda world: ("maintain", {"arguments": {}}),
    "pages.drilldown.clustering.make": lambda world: (9, {"method": "kmeans", "k": 2}),
    "pages.drilldown.node._save_name": lambda world: (world.node, f"name {next(world.numbers)}"),
    "pages.drilldown.node._uncut": _split,
    "pages.drilldown.search_strip.accept": lambda world: (world.search, world.node),
    "pages.drilldown.search_strip.refuse": lambda world: (world.search, world.node),
    "pages.isolate._mark": _page_of_marks,
    "pages.isolate._mark_no": lambda world: (world.loaded(), [stock.image_id(0)]),
    "pages.isolate._rename": lambda world: (world.loaded(), f"name {next(world.numbers)}"),
    "pages.isolate._undo": _marked,
    "pages.map._place": _map_with_a_new_image,
    "pages.models.releases._promote_now": lambda world: (world.run(), "", None, {"force": False}),
    "pages.models.releases._register": lambda world: (world.run(),),
    "pages.models.releases._retire": lambda world: (world.version(),),
    "pages.models.releases._roll_back": lambda world: (world.promoted_twice(), "a test"),
    "pages.models.releases._shadow": lambda world: (world.version(),),
    "pages.slices.header._delete": lambda world: (world.slice(),),
    "pages.slices.header._freeze": lambda world: (world.slice(where="confidence >= 0", live=True),),
    "pages.slices.header._set_role": lambda world: (world.slice(), "evaluation"),
    "pages.slices.header._tag": lambda world: (world.slice(), "gold"),
    "pages.slices.header._untag": _tagged,
    "pages.sql._run": lambda world: ("SELECT 1", {"parameters": {}}),
    "pages.sql._save": lambda world: (f"q{next(world.numbers)}", "SELECT 1", {"parameters": {}, "description": ""}),
}


@dataclass(frozen=True)
class Identity:
    """Who opens the app's websocket: what the gate tells the pages (None: it lets nobody in), what the audit log is to
    name, and the scopes that count.
    """

    told: list[tuple[str, str]] | None
    key_id: str | None = None
    user: str | None = None
    scopes: frozenset[str] = frozenset()


HERE = "http://lake.example:8501"
USERS = ("*", "ann@lab.example=admin", "@lab.example=edit", "bob@lab.example", "zo\u00eb@lab.example=sql")


class Gate:
    """The real gate of a server that requires keys, and of one that is open to all."""

    def __init__(self, lake: OpenLake) -> None:
        self.keyring = keyring = Keyring(lake)
        self.told: list[tuple[str, str]] | None = None
        login = Login(keyring, "lakeloop_x", oidc=OidcWithClaims(*USERS))
        self.closed = Access(self._page, keyring, False, login)
        self.open = Access(self._page, keyring, True)

    def refresh(self) -> None:
        self.keyring.refresh(0)

    async def _page(self, scope: Any, receive: Any, send: Any) -> None:
        self.told = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
        await send({"type": "websocket.close"})

    def headers(self, *headers: tuple[str, str], open_to_all: bool = False) -> list[tuple[str, str]] | None:
        """The headers that the pages of a websocket with these headers see; None if it is refused."""
        self.told = None

        async def connect() -> None:
            socket = Socket(self.open if open_to_all else self.closed, "/_stcore/stream", [("Origin", HERE), *headers])
            await socket.hear()

        asyncio.run(connect())
        return self.told

    def cookie(self, token: str) -> tuple[str, str]:
        """The cookie of a login with this key."""
        body = urlencode({"key": token}).encode()
        answer = asyncio.run(ask(self.closed, "POST", "/login", [("Origin", HERE)], body))
        return "Cookie", answer.headers["set-cookie"].partition(";")[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from embeddings.clusters.drilldown import cluster
    from embeddings.maps import maps
    from embeddings.search import saved_searches

    lake = open_lake.create(str(tmp_path_factory.mktemp("pages") / "lake"), embedders=["x"])
    stock.bind(lake)
    stock.add(lake, range(12))
    stock.embed(lake, range(12))
    search = saved_searches.start(lake, examples=[stock.image_id(0)]).id
    return World(lake, f"{cluster(lake, method='kmeans', k=2).tree}/0", search, maps.make(lake).id)


def everyone(lake: OpenLake) -> dict[str, Identity]:
    """Every way to come in, and the ways that lead nowhere."""
    gate = Gate(lake)
    ours = [("X-Lakeloop-Scopes", "admin"), ("X-Lakeloop-User", "ann@lab.example")]
    identities = {
        "nobody": Identity(gate.headers()),
        "nobody, with the gate's own headers": Identity(gate.headers(*ours)),
        "a login without scopes": Identity([("X-Lakeloop-User", "ann@lab.example")], user="ann@lab.example"),
        "anyone of an open server": Identity(gate.headers(*ours, open_to_all=True), scopes=frozenset({"admin"})),
    }
    for scopes in (*((scope,) for scope in keys.SCOPES), ("read", "sql"), ("read", "edit")):
        key, token = keys.create(lake, None, scopes)
        gate.refresh()
        allowed = frozenset(scopes) if key.allows("read") else frozenset[str]()
        identities[f"key: {', '.join(scopes)}"] = Identity(gate.headers(bearer(token)), key.key_id, None, allowed)
        if key.allows("read"):
            identities[f"login: {', '.join(scopes)}"] = Identity(
                gate.headers(gate.cookie(token)), key.key_id, None, allowed
            )
    for state in ("revoked", "expired"):
        key, token = keys.create(lake, None, ["admin"])
        gate.refresh()
        told = gate.headers(bearer(token))
        assert told is not None
        if state == "revoked":
            keys.revoke(lake, key.key_id)
        else:
            lake.update("keys", keys._table(replace(key, expires_at=store.now())))
        gate.refresh()
        identities[f"key: {state}"] = Identity(gate.headers(bearer(token)))
        identities[f"key: {state} while the page is open"] = Identity(told)
    for email, verified, scopes in (
        ("ann@lab.example", True, ("read", "admin")),
        ("ann@lab.example", False, ("read",)),
        ("bob@lab.example", True, ("read",)),
        ("carl@lab.example", True, ("read", "edit")),
        ("zo\u00eb@lab.example", True, ("read", "sql")),
        ("eve@elsewhere.example", True, ("read",)),
    ):
        cookie = OidcWithClaims(*USERS).cookie({"sub": "1", "email": email, "email_verified": verified})
        user = email if verified else f"{email} (not verified)"
        told = gate.headers(("Cookie", f"_streamlit_user={cookie['_streamlit_user']}"))
        identities[f"user: {user}"] = Identity(told, None, user, frozenset(scopes))
    return identities


def bearer(token: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {token}"


def allowed(handler: str, identity: Identity) -> bool:
    """What the table says."""
    name, _, kind = handler.partition(" ")
    needed = ACTIONS[HANDLERS[name]]
    if needed == OF_KIND:
        needed = kinds.scope(kind or "cluster")
    return needed in identity.scopes or "admin" in identity.scopes


@pytest.fixture
def as_identity(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[[Identity], None]:
    """as_identity(identity): from now on it is who looks at the pages, whose thread this is."""
    from streamlit.runtime.context import ContextProxy, StreamlitHeaders

    from search_app.ui import session

    monkeypatch.setattr(supervisor, "ensure", lambda lake: None)
    monkeypatch.setattr(session, "put", lambda **_: None)
    monkeypatch.setattr(session, "go", lambda *_, **__: None)
    page = threading.get_ident()
    monkeypatch.setattr(session, "get_script_run_ctx", lambda **_: world if threading.get_ident() == page else None)

    def become(identity: Identity) -> None:
        headers = StreamlitHeaders(identity.told or [])
        monkeypatch.setattr(ContextProxy, "headers", property(lambda _: headers))

    return become


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_every_identity_can_do_what_the_table_says_and_nothing_else(
    world: World, as_identity: Callable[[Identity], None], every: bool, say: Say
) -> None:
    """Refused calls all; of those that are done, one for each handler and one for each identity, or `every`."""
    from streamlit.runtime.scriptrunner import RerunException

    from search_app.ui import session

    assert set(HANDLERS) == {name.partition(" ")[0] for name in CALLS}
    counts: Counter[str] = Counter()
    identities = everyone(world.lake)
    done: set[str] = set()
    session.bind(world.lake)
    guard, world.lake.guard = world.lake.guard, lambda: None  # while this test prepares
    refused = {handler: prepare(world) for handler, prepare in CALLS.items()}

    def call(handler: str, given: tuple[Any, ...]) -> tuple[dict[str, int], dict[str, int]]:
        *arguments, last = given
        named = last if isinstance(last, dict) else {}
        before, unguarded = world.written(), world.lake.guard
        world.lake.guard = guard
        with suppress(NotAllowed, RerunException):
            function(handler)(*arguments, *([] if named else [last]), **named)
        world.lake.guard = unguarded
        return before, world.written()

    for name, identity in identities.items():
        as_identity(identity)
        for handler, prepare in CALLS.items():
            where = f"{name}: {handler}"
            if not allowed(handler, identity):
                before, after = call(handler, refused[handler])
                assert after == before, where
                counts["refused"] += 1
            elif every or not {name, handler} <= done:
                before, after = call(handler, prepare(world))
                if handler == "pages.sql._run":  # its own thread writes the row
                    wait_for(partial(lambda before: world.written() != before, before))
                    after = world.written()
                assert after["audit"] == before["audit"] + 1, where
                action = HANDLERS[handler.partition(" ")[0]]
                assert newest(world.lake) == (action, identity.key_id, identity.user), where
                done |= {name, handler}
                counts["done"] += 1
    say(f"{len(CALLS)} calls of {len(HANDLERS)} handlers as {len(identities)} identities: {dict(counts)}")
    assert counts["refused"] > 300
    assert counts["done"] >= len(CALLS)


def function(handler: str) -> Callable[..., Any]:
    module, _, name = handler.partition(" ")[0].rpartition(".")
    return getattr(importlib.import_module(f"search_app.ui.{module}"), name)


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def newest(lake: OpenLake) -> tuple[str, str | None, str | None]:
    """(action, key, user) of the last row of the audit log."""
    row = (
        lake.scan("audit", ["timestamp", "action", "key_id", "user"]).sort_by([("timestamp", "descending")]).slice(0, 1)
    )
    [facts] = row.to_pylist()
    return facts["action"], facts["key_id"], facts["user"]


def test_a_page_writes_nothing_outside_a_handler(world: World, as_identity: Callable[[Identity], None]) -> None:
    """Not even for admin: what did not ask is refused where the lake commits."""
    from search_app.ui import session

    as_identity(Identity([("X-Lakeloop-Scopes", "admin")]))
    session.bind(world.lake)
    before = world.written()
    with pytest.raises(AssertionError, match="nothing asked"):
        slices.create(world.lake, "secret", ids=[stock.image_id(1)])
    with pytest.raises(AssertionError, match="nothing asked"):
        session.wrote("secret", {})
    assert world.written() == before
    with session.acting("slice create"):
        slices.create(world.lake, "open", ids=[stock.image_id(1)])
    assert world.written()["slices"] > before["slices"]


def test_the_table_has_no_action_that_nothing_does() -> None:
    assert set(HANDLERS.values()) == set(ACTIONS)


def test_no_page_has_another_way_to_write() -> None:
    """Pages get their lake from the session, whose guard asks; they open no other lake, no file to write, no process.

    Threads have no guard: those that there are write nothing, but for the row of a query that was asked about.
    """
    ways = re.compile(
        r"lake\.(?:open|create)\(|OpenLake\(|\bopen\(|\.guard\b|_acting\b|audit\.(?:record|write)\(|\.write_(?:text|bytes)\("
        r"|\bsubprocess\b|\bos\.(?:remove|unlink|rename|system)\b|\.unlink\(|\bshutil\b|\bThread\(|ThreadPoolExecutor\("
    )
    found = {
        (path.relative_to(access_table.UI).as_posix(), match[0])
        for path in access_table.UI.rglob("*.py")
        for match in ways.finditer(path.read_text())
    }
    assert found == {
        ("session.py", ".guard"),
        ("session.py", "_acting"),
        ("session.py", "audit.write("),
        ("data/running_query.py", "Thread("),
        ("data/running_discovery.py", "ThreadPoolExecutor("),
        ("pages/drilldown/__init__.py", "Thread("),
        ("pages/slices/export.py", "lake.open("),  # in code that it shows
    }


def test_a_page_may_look_at_many_predictions_without_the_right_to_start_the_job(
    world: World, as_identity: Callable[[Identity], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from search_app.ui import session
    from search_app.ui.data import jobs, running_discovery

    as_identity(Identity([("X-Lakeloop-Scopes", "read")]))
    session.bind(world.lake)
    monkeypatch.setattr(running_discovery, "QUICK_PREDICTIONS", 1)
    before = world.written()
    with pytest.raises(NotAllowed, match="needs the scope edit"):
        running_discovery.of(world.lake, (1,), 2, partial(jobs.submit, "discover"), by="metadata")
    assert world.written() == before
