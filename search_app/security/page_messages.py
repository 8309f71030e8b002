"""Which messages of a browser reach Streamlit: those that run pages. Others, which no page needs, are dropped.

Among them is one that empties the caches of all users, and one that runs git on the server. A message is a protocol
buffer; only the numbers of its outermost fields are read here.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

KINDS = frozenset({"rerun_script", "stop_script", "app_heartbeat"})


class PageMessages:
    """Passes on every request, and of a websocket the messages of these kinds."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_allowed() -> Message:
            while True:
                message = await receive()
                if message["type"] != "websocket.receive" or is_allowed(message.get("bytes") or b""):
                    return message

        await self.app(scope, receive_allowed if scope["type"] == "websocket" else receive, send)


def is_allowed(message: bytes) -> bool:
    """Whether the message is well-formed as far as its outermost fields, and none of them is of another kind."""
    allowed, position = _numbers(), 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag >> 3 not in allowed:
            return False
        value, position = _varint(message, position)
        match tag & 7:
            case 0:
                pass
            case 2:
                position += value
            case _:
                return False
    return position == len(message)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The number there and the position behind it; a number beyond the end, which no field has, if it is cut off."""
    value = 0
    for length, byte in enumerate(message[position : position + 10]):
        value |= (byte & 127) << 7 * length
        if byte < 128:
            return value, position + length + 1
    return len(message) + (1 << 70), len(message) + 1


@functools.cache
def _numbers() -> frozenset[int]:
    """The numbers of the fields that a message may have: the kinds, and what is no kind."""
    from streamlit.proto.BackMsg_pb2 import BackMsg

    fields = BackMsg.DESCRIPTOR.fields
    return frozenset(field.number for field in fields if field.name in KINDS or field.containing_oneof is None)
