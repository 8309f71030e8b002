"""Messages over the app's websocket that no browser of ours sends, to a real server that requires keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from lake import open_lake, slices
from lake.access import keys
from lake.open_lake import OpenLake
from search_app.security.page_messages import KINDS, is_allowed
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


def test_a_message_is_at_most_four_megabytes(guarded: Guarded) -> None:
    """Sixteen megabytes of empty widgets were 570 MB of memory and 33 s of work, and 25 were accepted."""
    from streamlit.proto.BackMsg_pb2 import BackMsg

    message = BackMsg()
    message.rerun_script.query_string = "x" * (5 << 20)
    with visiting(guarded.url, guarded.headers["read"]) as visit:
        visit.run("slices")
        with pytest.raises(ConnectionClosed):
            visit.exchange(message.SerializeToString())


def test_a_browser_runs_pages_and_asks_streamlit_for_nothing_else(guarded: Guarded) -> None:
    """Neither what git says of the server's files, nor to empty the caches and the sessions' states."""
    from streamlit.proto.BackMsg_pb2 import BackMsg

    with visiting(guarded.url, guarded.headers["read"]) as visit:
        visit.run("slices")
        for message in (BackMsg(load_git_info=True), BackMsg(clear_cache=True)):
            visit.socket.send(message.SerializeToString())
        visit.run("slices")
        assert "git_info_changed" not in visit.kinds
    kinds = {field.name: field for field in BackMsg.DESCRIPTOR.fields if field.containing_oneof is not None}
    for name, field in kinds.items():
        message = BackMsg()
        if field.message_type is None:
            setattr(message, name, True)
        else:
            getattr(message, name).SetInParent()
        assert is_allowed(message.SerializeToString()) == (name in KINDS), name
    both = BackMsg(clear_cache=True).SerializeToString() + BackMsg(stop_script=True).SerializeToString()
    assert not is_allowed(both)


@given(st.binary(max_size=60))
def test_any_bytes_are_allowed_or_not(message: bytes) -> None:
    from streamlit.proto.BackMsg_pb2 import BackMsg

    if is_allowed(message):
        try:
            parsed = BackMsg.FromString(message)
        except Exception:  # Streamlit refuses it
            return
        assert parsed.WhichOneof("type") in {None, *KINDS}
