"""Fetches an image from an untrusted URL, and refuses addresses inside the private network.

Off by default (`lakeloop serve --url-import`). A name is resolved once, all its addresses must be public, and the
connection goes to one of them, so that a second response of the name server changes nothing. It follows no redirects,
decompresses nothing and uses no proxy; total size and time are limited. Other modules decode the bytes. This module
knows nothing of routes.
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

# The complete syntax, so that no other URL parser matters: no user, no backslash, no escapes in the host.
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
_LOWER_32_BITS = 0xFFFFFFFF
# The interface identifier of ISATAP, RFC 5214; the mask leaves out the bit "universal".
_ISATAP, _ISATAP_MASK = 0x00005EFE, 0xFDFFFFFF

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
# A name server that never responds blocks its thread without end: at most so many threads, and nothing waits for them.
_resolving = threading.BoundedSemaphore(8)
# Images in memory at the same time.
_fetching = threading.BoundedSemaphore(8)


class UrlRefused(BadInput):
    """The image of the URL was refused. `reason` is url, address, answer, size or time."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class FetchLimits:
    """`size`: most bytes of the body. `seconds`: most seconds for the whole fetch. `ports`: the allowed ports."""

    size: int = 32 * 2**20
    seconds: float = 10.0
    ports: frozenset[int] = field(default=frozenset({80, 443}))


class UrlParts(NamedTuple):
    """The parts of a URL: `host` without brackets, `path` with its query, `authority` as in the Host header."""

    https: bool
    host: str
    port: int
    path: str
    authority: str


def is_public(address: str) -> bool:
    """Whether an IP address is global unicast. Of addresses that wrap an IPv4 address, only NAT64 counts as public."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not any(ip in net for net in _V4_REFUSED)
    if ip.scope_id is not None:
        return False
    if ip in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & _LOWER_32_BITS)))
    # ISATAP wraps an IPv4 address of a private network in the lower half of a public IPv6 one.
    isatap = (int(ip) >> 32) & _ISATAP_MASK == _ISATAP
    return ip in _V6_UNICAST and ip.is_global and not isatap and not any(ip in net for net in _V6_REFUSED)


def split_url(url: str, limits: FetchLimits) -> UrlParts:
    """Splits a URL. Raises UrlRefused unless it is a plain http or https URL on an allowed port."""
    match_ = _URL.fullmatch(url) if len(url) <= LONGEST_URL else None
    if match_ is None:
        raise UrlRefused(
            "url",
            "write the URL as http://host/path or https://host/path in ASCII (a name in another script as xn--..., "
            f"other characters as %XX), without user, password or fragment, up to {LONGEST_URL} characters",
        )
    https = match_["scheme"].lower() == "https"
    host = match_["host"].lower().strip("[]")
    port = int(match_["port"]) if match_["port"] else 443 if https else 80
    if port not in limits.ports:
        raise UrlRefused("url", f"port {port} is not allowed; use {' or '.join(map(str, sorted(limits.ports)))}")
    last = host.rstrip(".").rpartition(".")[2]
    if match_["host"][0] == "[" or last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last):
        # Some systems read 2130706433 or 0x7f.1 as an address, others as a name.
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise UrlRefused(
                "url", "write an IP address in its usual form, such as 192.0.2.7 or [2001:db8::7]"
            ) from None
    authority = match_["host"].lower() + (f":{port}" if match_["port"] else "")
    return UrlParts(https, host, port, (match_["path"] or "/") + (match_["query"] or ""), authority)


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a name, from the system's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[list[str]] = loop.create_future()

    def look_up() -> None:
        addresses, failure = [], None
        try:
            addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            failure = error if isinstance(error, OSError) else OSError("it is not a valid name")
        finally:
            _resolving.release()
        with suppress(RuntimeError):  # the server stopped meanwhile
            loop.call_soon_threadsafe(settle, addresses, failure)

    def settle(addresses: list[str], failure: OSError | None) -> None:
        if result.done():
            return
        if failure is None:
            result.set_result(addresses)
        else:
            result.set_exception(failure)

    if not _resolving.acquire(blocking=False):
        raise OSError("too many other names are being resolved")
    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    return await result


async def fetch(
    url: str,
    *,
    limits: FetchLimits = FetchLimits(),
    resolve: Resolve = resolve,
    allowed: Callable[[str], bool] = is_public,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """The body of a GET of `url`. Raises UrlRefused if anything fails, and CouldNot while too many other fetches run.

    `resolve` gives the addresses of a name, `allowed` says which of them may be used, `tls` replaces the system's
    certificate authorities.
    """
    target = split_url(url, limits)
    if not _fetching.acquire(blocking=False):
        raise CouldNot("this server is fetching too many other images; try again")
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
        raise UrlRefused("time", f"{target.host} did not send the image within {limits.seconds:g} s") from None
    except ssl.SSLError as error:
        raise UrlRefused("answer", f"{target.host} has no trusted certificate ({error.reason or error})") from None
    except h11.RemoteProtocolError as error:
        raise UrlRefused("answer", f"{target.host} does not speak HTTP ({error})") from None
    except OSError as error:
        raise UrlRefused("answer", f"{target.host} could not be reached ({error.strerror or error})") from None
    finally:
        _fetching.release()


async def _checked_addresses(target: UrlParts, resolve: Resolve, allowed: Callable[[str], bool]) -> list[str]:
    """The addresses to try, in order. One private address refuses the name: it is not there by chance."""
    try:
        addresses: Sequence[str] = [str(ipaddress.ip_address(target.host))]
    except ValueError:
        addresses = list(dict.fromkeys(await resolve(target.host, target.port)))
    # The message does not tell the address: it would reveal private names.
    if not addresses or not all(map(allowed, addresses)):
        raise UrlRefused("address", f"{target.host} is not a public address of the internet")
    return list(addresses[:MOST_ADDRESSES])


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


async def _body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: UrlParts, size: int) -> bytes:
    too_large = UrlRefused("size", f"the image at {target.host} is larger than {size:,} bytes")
    http = h11.Connection(h11.CLIENT)
    headers = [
        ("Host", target.authority),
        ("Accept", "image/*"),
        ("Accept-Encoding", "identity"),
        ("User-Agent", f"lakeloop/{VERSION}"),
        ("Connection", "close"),
    ]
    request = http.send(h11.Request(method="GET", target=target.path, headers=headers)) or b""
    writer.write(request + (http.send(h11.EndOfMessage()) or b""))
    await writer.drain()
    body = bytearray()
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(await reader.read(CHUNK))
            case h11.Response() as response:
                length = _check_response(response, target.host)
                if length > size:
                    raise too_large
            case h11.Data(data=data):
                body += data
                if len(body) > size:
                    raise too_large
            case h11.EndOfMessage():
                return bytes(body)
            case h11.ConnectionClosed() | h11.PAUSED:
                raise UrlRefused("answer", f"{target.host} closed the connection without a response")


def _check_response(response: h11.Response, host: str) -> int:
    """Raises UrlRefused unless it is a plain image. Returns the Content-Length, 0 without one."""
    if 300 <= response.status_code < 400:
        raise UrlRefused(
            "answer", f"{host} redirects to another URL, which is not followed; give the URL of the image itself"
        )
    if response.status_code != 200:
        raise UrlRefused("answer", f"{host} responds with status {response.status_code}, not 200")
    fields = {name: b"" for name in (b"content-type", b"content-encoding", b"content-length")}
    for name, value in response.headers:
        if name in fields:
            fields[name] = (fields[name] + b"," if fields[name] else b"") + value.strip().lower()
    if not re.fullmatch(rb"image/[^,]+", fields[b"content-type"]):
        type_ = fields[b"content-type"].decode("latin-1")[:80] or "no type"
        raise UrlRefused("answer", f"{host} sends {type_!r}, not an image/* type")
    if fields[b"content-encoding"] not in (b"", b"identity"):
        raise UrlRefused("answer", f"{host} sends a compressed response, although the request forbids it")
    return int(fields[b"content-length"] or b"0")
