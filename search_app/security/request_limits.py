"""uvicorn's HTTP protocol with a limit on the bytes of a request's head and of a body's trailers.

uvicorn's fast parser stores the request line, the headers and the trailers of a chunked body whatever their length: a
client that never stops sending them would fill the memory. The readers of bodies limit the bodies.
"""

from __future__ import annotations

import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10
_BODY = json.dumps(
    {
        "type": "about:blank",
        "title": "Request Header Fields Too Large",
        "status": 431,
        "detail": f"the head of the request has more than {HEAD_BYTES >> 10} KiB",
        "reason": "head_too_large",
    }
).encode()
_RESPONSE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


class BoundedHeadProtocol(HttpToolsProtocol):
    """A connection. It is closed after `HEAD_BYTES` without the end of a head or a byte of a body."""

    _since = 0
    _advanced = False

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._advanced = False
        super().data_received(data)
        self._since = 0 if self._advanced else self._since + len(data)
        if self._since > HEAD_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_RESPONSE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._advanced = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._advanced = True
        super().on_message_complete()
