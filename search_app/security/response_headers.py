"""Headers of every response: a browser must not frame it, guess its type, run what it was not sent as, or give it to
another site's page.

The app's pages allow what Streamlit needs and no more: its own scripts, the inline script of its index page by its
hash, `blob:` modules for the code of our components, the inline styles that its style library writes, and images and
fonts in `data:` and `blob:`. There is no `unsafe-eval`: of Streamlit, only Plotly charts need it, and no page has one.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALWAYS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
}
_NOTHING = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class ResponseHeaders:
    """Adds the headers that a response does not have itself, and takes away those that let other sites read it.

    `is_page`: whether a path belongs to the app's pages.
    """

    def __init__(self, app: ASGIApp, is_page: Callable[[str], bool]) -> None:
        self.app = app
        self.is_page = is_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        policy = page_policy() if self.is_page(scope["path"]) else _NOTHING

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [h for h in message.get("headers", ()) if not h[0].lower().startswith(b"access-control-")]
                present = {bytes(name).lower() for name, _ in headers}
                added = _ALWAYS | {b"content-security-policy": policy}
                message = {**message, "headers": headers + [h for h in added.items() if h[0] not in present]}
            await send(message)

        await self.app(scope, receive, with_headers)


@functools.cache
def page_policy() -> bytes:
    """The Content-Security-Policy of the app's pages, with the hashes of the inline scripts in Streamlit's index."""
    import streamlit

    index = Path(streamlit.__file__).with_name("static") / "index.html"
    digests = [hashlib.sha256(script.encode()).digest() for script in _INLINE.findall(index.read_text())]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'self'; script-src 'self' blob: {hashes}; worker-src 'self' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
        "media-src 'self' blob:; frame-src 'none'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ).encode()
