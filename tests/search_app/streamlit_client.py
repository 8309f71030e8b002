"""A browser's half of Streamlit's websocket: runs of pages, and messages that no browser would send."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

SECONDS = 60


class Visit:
    """One websocket: `session_id` is that of its session, `elements` what the last run of a page has drawn."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.session_id = ""
        self.elements: list[Any] = []
        self.kinds: set[str] = set()  # of what the server has sent

    def run(self, page: str, query: str = "", triggers: Mapping[str, Any] | None = None, fragment: str = "") -> None:
        """Runs a page, with the widgets of these ids just used: a button True, a text or a JSON trigger a str."""
        from streamlit.proto.BackMsg_pb2 import BackMsg

        message = BackMsg()
        message.rerun_script.query_string = query
        message.rerun_script.page_name = page
        message.rerun_script.fragment_id = fragment
        for name, value in (triggers or {}).items():
            state = message.rerun_script.widget_states.widgets.add(id=name)
            if value is True:
                state.trigger_value = True
            else:
                state.string_value = value
        self.socket.send(message.SerializeToString())
        self._hear()

    def button(self, label: str) -> str:
        """The id of the button with this label."""
        return next(str(e.button.id) for e in self.elements if e.HasField("button") and e.button.label == label)

    def texts(self) -> str:
        """Everything that was drawn, as text."""
        return "\n".join(map(str, self.elements))

    def exchange(self, message: bytes) -> None:
        """Sends it and hears what comes. Raises ConnectionClosed when the connection ends."""
        self.socket.send(message)
        while True:
            self.socket.recv(timeout=SECONDS)

    def _hear(self) -> None:
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        self.elements = []
        while True:
            data = self.socket.recv(timeout=SECONDS)
            assert isinstance(data, bytes)
            message = ForwardMsg.FromString(data)
            self.kinds.add(str(message.WhichOneof("type")))
            match message.WhichOneof("type"):
                case "new_session":
                    self.session_id = message.new_session.initialize.session_id
                case "delta" if message.delta.HasField("new_element"):
                    self.elements.append(message.delta.new_element)
                case "script_finished" if message.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN:
                    return


@contextmanager
def visiting(url: str, headers: Mapping[str, str], session_id: str = "") -> Iterator[Visit]:
    """A websocket of the server's own page with these headers; it asks to go on with that session."""
    protocols = [Subprotocol(text) for text in ("streamlit", *(("none", session_id) if session_id else ()))]
    stream = url.replace("http", "ws", 1) + "/_stcore/stream"
    with connect(stream, origin=Origin(url), subprotocols=protocols, additional_headers=headers, proxy=None) as socket:
        yield Visit(socket)
