"""An image fetched from a URL that somebody else wrote, without becoming their way into our network.

Off by default (`lakeloop serve --url-import`). A name is resolved once, every address it has must be a public one, and
the connection goes to such an address and no other, so that a second answer of the name server changes nothing. No
redirect is followed, nothing is decompressed, no proxy is asked; size and time are bounded in total. The bytes are not
looked into: whether they are an image is decided where every image is. It knows nothing of routes.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import h11

from lake.errors import BadInput, CouldNot
from lake.version import VERSION

LONGEST_URL = 2_048
MOST_ADDRESSES = 4
CHUNK = 65_536

# The whole form, so that no other parser's idea of a URL matters: no user, no backslash, no escapes in the host.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?)(:(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[!$-;=?-\[\]_a-z~]*)?(?P<query>\?[!$-;=?-\[\]_a-z~]*)?",
    re.ASCII | re.IGNORECASE,
)
_V4_REFUSED = [
    ipaddress.ip_network(net)
    for net in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
    )
]  # fmt: skip
_V6_UNICAST = ipaddress.ip_network("2000::/3")
# Teredo and other IETF protocols, documentation, 6to4.
_V6_REFUSED = [ipaddress.ip_network(net) for net in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
# A name server that never answers holds its thread for as long as it likes: so many, and nothing waits for them.
_resolving = threading.BoundedSemaphore(8)
# Images held in memory at once.
_fetching = threading.BoundedSemaphore(8)


class UrlRefused(BadInput):
    """Why the URL's image was not taken; `reason` is the same for machines: url, address, answer, size or time."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """Bytes of the body at most, seconds for all of it, and the ports that may be asked."""

    size: int = 32 * 2**20
    seconds: float = 10.0
    ports: frozenset[int] = field(default=frozenset({80, 443}))


class Target(NamedTuple):
    """A URL taken apart: `host` without brackets, `path` with its query, `authority` as the Host header has it."""

    https: bool
    host: str
    port: int
    path: str
    authority: str


def is_public(address: str) -> bool:
    """Whether an IP address is a global unicast one. Of those that wrap an IPv4 address only NAT64's may be."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not any(ip in net for net in _V4_REFUSED)
    if ip.scope_id is not None:
        return False
    if ip in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    # ISATAP wraps an IPv4 address of a private network in the lower half of a public IPv6 one.
    isatap = (int(ip) >> 32) & 0xFDFFFFFF == 0x00005EFE
    return ip in _V6_UNICAST and ip.is_global and not isatap and not any(ip in net for net in _V6_REFUSED)


def target_of(url: str, limits: Limits) -> Target:
    """Takes a URL apart. Raises UrlRefused for all but plain http and https URLs on the allowed ports."""
    found = _URL.fullmatch(url) if len(url) <= LONGEST_URL else None
    if found is None:
        raise UrlRefused(
            "url",
            "write the URL as http://host/path or https://host/path in ASCII (a name in another script as xn--..., "
            f"other characters as %XX), without user, password or fragment, up to {LONGEST_URL} characters",
        )
    https = found["scheme"].lower() == "https"
    host = found["host"].lower().strip("[]")
    port = int(found["port"]) if found["port"] else 443 if https else 80
    if port not in limits.ports:
        raise UrlRefused(
            "url", f"port {port} is not asked for images; use {' or '.join(map(str, sorted(limits.ports)))}"
        )
    last = host.rstrip(".").rpartition(".")[2]
    if found["host"][0] == "[" or last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last):
        # Number forms such as 2130706433 or 0x7f.1 mean an address to some and a name to others.
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise UrlRefused(
                "url", "write an IP address in its usual form, such as 192.0.2.7 or [2001:db8::7]"
            ) from None
    authority = found["host"].lower() + (f":{port}" if found["port"] else "")
    return Target(https, host, port, (found["path"] or "/") + (found["query"] or ""), authority)


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, as the system knows them. Raises OSError."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def ask() -> None:
        found, failure = [], None
        try:
            found = [str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            failure = error if isinstance(error, OSError) else OSError("it is no name")
        finally:
            _resolving.release()
        with suppress(RuntimeError):  # the server stopped meanwhile
            loop.call_soon_threadsafe(settle, found, failure)

    def settle(found: list[str], failure: OSError | None) -> None:
        if answer.done():
            return
        if failure is None:
            answer.set_result(found)
        else:
            answer.set_exception(failure)

    if not _resolving.acquire(blocking=False):
        raise OSError("too many other names are being looked up")
    threading.Thread(target=ask, name="resolve", daemon=True).start()
    return await answer


async def fetch(
    url: str,
    *,
    limits: Limits = Limits(),
    resolve: Resolve = resolve,
    allowed: Callable[[str], bool] = is_public,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """The body of a GET of `url`. Raises UrlRefused, whatever goes wrong, and CouldNot while too many others run.

    `resolve` and `allowed` say what a name's addresses are and which may be asked; `tls` replaces the system's idea of
    good certificates.
    """
    target = target_of(url, limits)
    if not _fetching.acquire(blocking=False):
        raise CouldNot("as many other images as this server fetches at a time are on their way; try again")
    try:
        async with asyncio.timeout(limits.seconds):
            addresses = await _checked_addresses(target, resolve, allowed)
            connection = await _connect(addresses, target.port)
            with connection:
                context = (tls or ssl.create_default_context()) if target.https else None
                name = target.host.rstrip(".") if context else None
                reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=name)
                try:
                    return await _body(reader, writer, target, limits.size)
                finally:
                    writer.transport.abort()
    except TimeoutError:
        raise UrlRefused("time", f"{target.host} did not give the image within {limits.seconds:g} s") from None
    except ssl.SSLError as error:
        raise UrlRefused(
            "answer", f"{target.host} has no certificate to be trusted ({error.reason or error})"
        ) from None
    except h11.RemoteProtocolError as error:
        raise UrlRefused("answer", f"{target.host} does not answer in HTTP ({error})") from None
    except OSError as error:
        raise UrlRefused("answer", f"{target.host} could not be reached ({error.strerror or error})") from None
    finally:
        _fetching.release()


async def _checked_addresses(target: Target, resolve: Resolve, allowed: Callable[[str], bool]) -> list[str]:
    """The few addresses to try, in order. One bad address condemns the name: it is not by chance among good ones."""
    try:
        found: Sequence[str] = [str(ipaddress.ip_address(target.host))]
    except ValueError:
        found = list(dict.fromkeys(await resolve(target.host, target.port)))
    # The address itself is not told: it would map somebody's private names.
    if not found or not all(map(allowed, found)):
        raise UrlRefused("address", f"{target.host} is not a public address of the internet, so it is not asked")
    return list(found[:MOST_ADDRESSES])


async def _connect(addresses: list[str], port: int) -> socket.socket:
    loop, failure = asyncio.get_running_loop(), OSError("it has no address")
    for address in addresses:
        connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, (address, port))
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


async def _body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target, size: int) -> bytes:
    too_large = UrlRefused("size", f"the image at {target.host} is larger than {size:,} bytes")
    http = h11.Connection(h11.CLIENT)
    headers = [
        ("Host", target.authority),
        ("Accept", "image/*"),
        ("Accept-Encoding", "identity"),
        ("User-Agent", f"lakeloop/{VERSION}"),
        ("Connection", "close"),
    ]
    asked = http.send(h11.Request(method="GET", target=target.path, headers=headers)) or b""
    writer.write(asked + (http.send(h11.EndOfMessage()) or b""))
    await writer.drain()
    body = bytearray()
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(await reader.read(CHUNK))
            case h11.Response() as answer:
                length = _refuse_answer(answer, target.host)
                if length > size:
                    raise too_large
            case h11.Data(data=data):
                body += data
                if len(body) > size:
                    raise too_large
            case h11.EndOfMessage():
                return bytes(body)
            case h11.ConnectionClosed() | h11.PAUSED:
                raise UrlRefused("answer", f"{target.host} ended the connection without an answer")


def _refuse_answer(answer: h11.Response, host: str) -> int:
    """Raises UrlRefused for anything but a plain image; returns the length it announces, 0 when it does not."""
    if 300 <= answer.status_code < 400:
        raise UrlRefused(
            "answer", f"{host} redirects to another place, which is not followed; give the image's own URL"
        )
    if answer.status_code != 200:
        raise UrlRefused("answer", f"{host} answers {answer.status_code}, not 200")
    said = {name: b"" for name in (b"content-type", b"content-encoding", b"content-length")}
    for name, value in answer.headers:
        if name in said:
            said[name] = (said[name] + b"," if said[name] else b"") + value.strip().lower()
    if not re.fullmatch(rb"image/[^,]+", said[b"content-type"]):
        shown = said[b"content-type"].decode("latin-1")[:80] or "no type"
        raise UrlRefused("answer", f"{host} gives {shown!r}, not an image/* type")
    if said[b"content-encoding"] not in (b"", b"identity"):
        raise UrlRefused("answer", f"{host} compresses what it sends, though it was asked not to")
    return int(said[b"content-length"] or b"0")
