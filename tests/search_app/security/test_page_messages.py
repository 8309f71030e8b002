"""Messages over the app's websocket that no browser of ours sends, to a real server that requires keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from lake import open_lake, slices
from lake.access import keys
from lake.open_lake import OpenLake
from tests.lake import stock
from tests.search_app.browsing import serving
from tests.search_app.streamlit_client import visiting

pytest.importorskip("streamlit")


@dataclass
class Guarded:
    url: str
    lake: OpenLake
    ids: dict[str, str]
    headers: dict[str, dict[str, str]]

    def versions(self) -> dict[str, int]:
        return {name: self.lake.version(name) for name in ("slices", "slice_tags", "audit", "jobs")}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    lake = open_lake.create(str(tmp_path_factory.mktemp("messages") / "lake"))
    stock.add(lake, range(3))
    made = {name: keys.create(lake, name, name.split(", ")) for name in ("read", "read, edit", "read, sql", "admin")}
    with serving(lake.uri, require_key=True) as url:
        yield Guarded(
            url,
            lake,
            {name: key.key_id for name, (key, _) in made.items()},
            {name: {"Authorization": f"Bearer {token}"} for name, (_, token) in made.items()},
        )


def test_a_forged_click_on_a_button_does_what_the_key_may_and_no_more(guarded: Guarded) -> None:
    slices.create(guarded.lake, "odd", ids=[stock.image_id(1)])
    before = guarded.versions()
    with visiting(guarded.url, guarded.headers["read"]) as visit:
        visit.run("slices", "set=odd@1")
        delete = visit.button("Delete this version")
        visit.run("slices", "set=odd@1", {delete: True})
        visit.run("slices", "set=odd@1", {delete: True})
    assert guarded.versions() == before
    with visiting(guarded.url, guarded.headers["read, edit"]) as visit:
        visit.run("slices", "set=odd@1")
        visit.run("slices", "set=odd@1", {delete: True})
    assert [slice_.id for slice_ in slices.list(guarded.lake)] == []
    rows = guarded.lake.sql("SELECT key_id, target FROM audit WHERE action = 'slice delete'").to_pylist()
    assert rows == [{"key_id": guarded.ids["read, edit"], "target": "odd@1"}]


def test_a_session_is_not_handed_to_another_key(guarded: Guarded) -> None:
    """Who knows the id of another's session gets a new one, and the other stays connected."""
    with visiting(guarded.url, guarded.headers["read, sql"]) as owner:
        owner.run("sql")
        with visiting(guarded.url, guarded.headers["read"], owner.session_id) as other:
            other.run("sql")
            assert other.session_id != owner.session_id
            assert "does not allow SQL" in other.texts()
        owner.run("sql")
        assert "does not allow SQL" not in owner.texts()
    with visiting(guarded.url, guarded.headers["read"], owner.session_id) as other:
        other.run("sql")
        assert other.session_id != owner.session_id
    with visiting(guarded.url, guarded.headers["read, sql"], owner.session_id) as again:
        again.run("sql")
        assert again.session_id == owner.session_id


def test_streamlit_s_other_doors_are_closed(guarded: Guarded) -> None:
    """No client writes the headers in which the gate says who it is, and no program drives the app without a page."""
    forged = {"X-Lakeloop-Scopes": "admin", "X-Lakeloop-User": "ann@lab.example"}
    with visiting(guarded.url, guarded.headers["read"] | forged) as visit:
        visit.run("sql")
        assert "does not allow SQL" in visit.texts()
    with httpx.Client(base_url=guarded.url, headers=guarded.headers["read"] | forged) as client:
        for path in ("interact", "mcp"):
            assert client.post(f"/_stcore/agent/{path}", json={}).status_code == 404
