"""An image by URL: public places only, whatever the URL, its name server or its server say."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from lake.errors import CouldNot
from search_app.security.url_import import FetchLimits, UrlRefused, fetch, is_public, resolve
from tests import pictures

PICTURE = pictures.encoded(pictures.noise(1))
QUICK = FetchLimits(seconds=2.0)


class Canary:
    """A listener on this machine that must never hear anything."""

    def __init__(self, family: socket.AddressFamily, address: str, port: int = 0) -> None:
        self.heard = 0
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.bind((address, port))
        self._socket.listen()
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.heard += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def canary() -> Iterator[Canary]:
    server = Canary(socket.AF_INET, "127.0.0.1")
    yield server
    server.close()


# The canary's address in every spelling a URL may have, and places nobody outside should reach. {p} is its port.
IN_NUMBERS = """
http://127.0.0.1:{p}/ https://127.0.0.1:{p}/ HTTP://127.0.0.1:{p} http://127.0.0.2:{p}/ http://127.255.255.254:{p}/
http://2130706433:{p}/ http://0x7f000001:{p}/ http://0X7F000001:{p}/ http://017700000001:{p}/ http://0x7f.1:{p}/
http://0177.0.0.1:{p}/ http://0177.0.0.0x1:{p}/ http://127.1:{p}/ http://127.0.1:{p}/ http://0x7f.0x0.0x0.0x1:{p}/
http://127.000.000.001:{p}/ http://127.0.0.1.:{p}/ http://0:{p}/ http://0.0.0.0:{p}/ http://00000:{p}/
http://4294967295:{p}/ http://255.255.255.255:{p}/ http://256.256.256.256:{p}/ http://127.0.0.1.0:{p}/ http://0x:{p}/
http://[::1]:{p}/ http://[::]:{p}/ http://[0:0:0:0:0:0:0:1]:{p}/ http://[0000::0001]:{p}/ http://[::ffff:127.0.0.1]:{p}/
http://[::ffff:7f00:1]:{p}/ http://[::ffff:0:7f00:1]:{p}/ http://[::127.0.0.1]:{p}/ http://[::7f00:1]:{p}/
http://[64:ff9b::127.0.0.1]:{p}/ http://[64:ff9b::7f00:1]:{p}/ http://[64:ff9b:1::7f00:1]:{p}/ http://[2002:7f00:1::]:{p}/
http://[2001:0:7f00:1::]:{p}/ http://[2001:0:0:0:0:0:80ff:fffe]:{p}/ http://[2a00::5efe:7f00:1]:{p}/ http://[fe80::1]:{p}/
http://[fe80::1%25lo]:{p}/ http://[::1%25lo]:{p}/ http://[fc00::1]:{p}/ http://[fd00:ec2::254]:{p}/ http://[fec0::1]:{p}/
http://[ff02::1]:{p}/ http://[2001:db8::1]:{p}/ http://[3fff::1]:{p}/ http://[100::1]:{p}/ http://[5f00::1]:{p}/
http://[::ffff:169.254.169.254]:{p}/ http://[64:ff9b::a9fe:a9fe]:{p}/ http://[2002:a9fe:a9fe::]:{p}/ http://[::1]]:{p}/
http://169.254.169.254/latest/meta-data/ http://2852039166/latest/ http://0xa9fea9fe/ http://0251.0376.0251.0376/
http://0xa9.0xfe.0xa9.0xfe/ http://169.254.43518/ http://169.16689662/ http://100.100.100.200/ http://192.0.0.192/
http://10.0.0.1/ http://172.16.0.1/ http://192.168.1.1/ http://100.64.0.1/ http://198.18.0.1/ http://192.0.2.1/
http://192.88.99.1/ http://224.0.0.1/ http://240.0.0.1/
"""

IN_WORDS = """
http://localhost:{p}/ http://LOCALHOST:{p}/ http://localhost.:{p}/ http://a.localhost:{p}/ http://localhost.localdomain:{p}/
http://ip6-localhost:{p}/ http://lvh.me:{p}/ http://127.0.0.1.nip.io:{p}/ http://metadata.google.internal/
http://inner.example:{p}/ http://mixed.example:{p}/ http://mapped.example:{p}/ http://nat64.example:{p}/
http://sixtofour.example:{p}/ http://link-local.example:{p}/ http://empty.example:{p}/ http://odd.example:{p}/
"""

# What the name server says of them.
NAMES = {
    "mixed.example": ["93.184.215.14", "127.0.0.1"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "nat64.example": ["64:ff9b::7f00:1"],
    "sixtofour.example": ["2002:7f00:1::1"],
    "link-local.example": ["fe80::1%lo"],
    "public.example": ["93.184.215.14"],
    "empty.example": [],
    "odd.example": ["localhost"],
    "metadata.google.internal": ["169.254.169.254"],
    "ip6-localhost": ["::1"],
}

IN_FORM = [
    *("", " ", "127.0.0.1:{p}", "//127.0.0.1:{p}/", "http:/127.0.0.1:{p}/", "http:127.0.0.1:{p}"),
    *("http:///127.0.0.1:{p}/", "http:\\\\127.0.0.1:{p}\\", "jar:http://127.0.0.1:{p}/!/", "data:image/png,x"),
    *("file:///etc/passwd", "FILE:///etc/passwd", "file://localhost/etc/passwd", "gopher://127.0.0.1:{p}/_GET%20/"),
    *("ftp://127.0.0.1:{p}/", "dict://127.0.0.1:{p}/", "ldap://127.0.0.1:{p}/", "http://user@127.0.0.1:{p}/"),
    *("http://user:pass@127.0.0.1:{p}/", "http://public.example@127.0.0.1:{p}/", "http://127.0.0.1:{p}#@public.example/"),
    *("http://public.example#@127.0.0.1:{p}/", "http://public.example:80@127.0.0.1:{p}/", " http://127.0.0.1:{p}/"),
    *("http://127.0.0.1:{p}\\@public.example/", "http://public.example\\@127.0.0.1:{p}/", "http://127.0.0.1\n:{p}/"),
    *("http://127.0.0.1:{p}\t/", "http://127.0.0.1:{p}/\r\nHost: x", "http://127.0.0.1%00.public.example:{p}/"),
    *("http://127.0.0.1\0.public.example:{p}/", "http://%31%32%37.0.0.1:{p}/", "http://127。0。0。1:{p}/"),
    *("http://①②⑦.⓪.⓪.①:{p}/", "http://１２７.0.0.1:{p}/", "http://loc\u00adalhost:{p}/", "http://ⓛocalhost:{p}/"),
    *("http://public.example:22/", "http://public.example:6379/", "http://public.example:0/", "http://-:{p}/"),
    *("http://public.example:99999/", "http://public.example:-1/", "http://public.example:８０/", "http://.:{p}/"),
    *("http://[127.0.0.1]:{p}/", "http://[::1:{p}/", "http://::1:{p}/", "http://a..example:{p}/"),
    *("http://" + "a" * 64 + ".example:{p}/", "http://public.example/" + "a" * 3_000),
]  # fmt: skip

HOSTILE = [*IN_NUMBERS.split(), *IN_WORDS.split(), *IN_FORM]


async def _resolve(host: str, port: int) -> Sequence[str]:
    """Some names as an attacker's name server gives them, all others as this machine."""
    return NAMES.get(host, ["127.0.0.1"])


def test_there_are_enough_hostile_urls() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 80


@pytest.mark.parametrize("url", HOSTILE)
def test_no_hostile_url_reaches_this_machine(url: str, canary: Canary) -> None:
    limits = replace(QUICK, ports=frozenset({80, 443, canary.port}))
    with pytest.raises(UrlRefused) as refused:
        asyncio.run(fetch(url.replace("{p}", str(canary.port)), limits=limits, resolve=_resolve))
    assert refused.value.reason in ("url", "address")
    assert canary.heard == 0
    assert "127.0.0.1" not in str(refused.value) or "127.0.0.1" in url, "it does not tell what a name resolves to"


def test_a_host_is_resolved_once_and_the_connection_goes_to_the_checked_address() -> None:
    names: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        names.append(host)
        return ["127.0.0.1"] if len(names) == 1 else ["127.0.0.66"]

    body, _ = _run(_ok(PICTURE, _length(PICTURE)), resolve=rebinding)
    assert (body, names) == (PICTURE, ["pictures.example"]), (
        "one answer is checked and used; a second is never asked for"
    )


def test_this_machine_s_own_name_server_is_heard_in_a_thread_of_its_own() -> None:
    assert "127.0.0.1" in asyncio.run(resolve("localhost", 80))
    with pytest.raises(OSError):
        asyncio.run(resolve("a" * 64, 80))


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("8.8.8.8", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d70e", True),
        ("64:ff9b::a00:1", False),
        ("::ffff:8.8.8.8", False),
        ("2002:808:808::1", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) == public


@given(st.ip_addresses())
def test_no_address_python_calls_special_is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    special = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    special = special or address.is_unspecified
    if special:
        assert not is_public(str(address))


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_no_more_public_than_itself(inner: ipaddress.IPv4Address) -> None:
    number = int(inner)
    for outer in ((0xFFFF << 32) | number, (0x64FF9B << 96) | number, (0x2002 << 112) | (number << 80), number):
        assert is_public(str(ipaddress.IPv6Address(outer))) <= is_public(str(inner))


# A server of ours, behind a name, whose address is allowed for the test. ------------------------------------------

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def _bytes(*parts: bytes, pause: float = 0.0) -> Reply:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause)

    return reply


def _ok(body: bytes, *headers: bytes, kind: bytes = b"image/png") -> Reply:
    return _bytes(b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Type: " + kind, *headers, b"", b""]) + body)


def _length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


async def _fetch_from(
    reply: Reply, limits: FetchLimits = QUICK, path: str = "/a.png", serve: ssl.SSLContext | None = None, **options: Any
) -> tuple[bytes | UrlRefused, bytes]:
    """The result of `fetch` from a server that sends this reply, and the request that the server received."""
    request = b""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal request
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            await reply(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serve)
    port = server.sockets[0].getsockname()[1]

    async def resolve(host: str, _: int) -> Sequence[str]:
        return ["127.0.0.1"]

    try:
        scheme = "https" if serve else "http"
        url = f"{scheme}://pictures.example:{port}{path}"
        limits = replace(limits, ports=frozenset({port}))
        own = {"resolve": resolve, "allowed": "127.0.0.1".__eq__} | options
        return await fetch(url, limits=limits, **own), request
    except UrlRefused as refused:
        return refused, request
    finally:
        server.close()


def _run(reply: Reply, *more: Any, **options: Any) -> tuple[bytes | UrlRefused, bytes]:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(_fetch_from(reply, *more, **options))


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(
    "reply",
    [
        _ok(PICTURE, _length(PICTURE)),
        _ok(PICTURE),
        _ok(PICTURE, _length(PICTURE), b"Content-Encoding: identity", kind=b"Image/PNG; charset=x"),
        _ok(b"%x\r\n%s\r\n0\r\n\r\n" % (len(PICTURE), PICTURE), b"Transfer-Encoding: chunked"),
        _bytes(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", PICTURE),
    ],
)
def test_an_image_comes_as_its_bytes(reply: Reply, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        body, request = runner.run(_fetch_from(reply, path="/a%20b.png?size=l"))
    assert body == PICTURE
    first, *headers = request.decode().split("\r\n")
    assert first == "GET /a%20b.png?size=l HTTP/1.1"
    assert any(line.startswith("host: pictures.example:") for line in map(str.lower, headers))
    assert "accept-encoding: identity" in map(str.lower, headers)


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch, canary: Canary) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    body, _ = _run(_ok(PICTURE, _length(PICTURE)))
    assert (body, canary.heard) == (PICTURE, 0)


BOMB = gzip.compress(bytes(8 * 2**20))


@pytest.mark.parametrize(
    ("reply", "reason", "why"),
    [
        (_ok(BOMB, _length(BOMB), b"Content-Encoding: gzip"), "answer", "compressed"),
        (_ok(BOMB, b"Content-Encoding: identity", b"Content-Encoding: br"), "answer", "compressed"),
        (_ok(BOMB, b"Transfer-Encoding: gzip, chunked"), "answer", "not speak HTTP"),
        (_ok(b"<html>", kind=b"text/html"), "answer", "'text/html', not an image"),
        (_ok(b"<html>", b"Content-Type: text/html"), "answer", "not an image"),
        (_bytes(b"HTTP/1.1 200 OK\r\n\r\n", PICTURE), "answer", "'no type'"),
        (_ok(PICTURE, b"Content-Length: 99999999999"), "size", "larger than"),
        (_ok(PICTURE, b"Content-Length: %d" % (len(PICTURE) + 1)), "answer", "not speak HTTP"),
        (_ok(PICTURE, b"Content-Length: -1"), "answer", "not speak HTTP"),
        (_ok(b"ffffffffffffffffffff1\r\n", b"Transfer-Encoding: chunked"), "answer", "not speak HTTP"),
        (
            _bytes(b"HTTP/1.1 404 Not Found\r\nContent-Type: image/png\r\n\r\n", PICTURE),
            "answer",
            "responds with status 404",
        ),
        (_bytes(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), "answer", "not speak HTTP"),
        (_bytes(b""), "answer", "not speak HTTP"),
        (_bytes(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000), "answer", "not speak HTTP"),
        (_bytes(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", *[b"x" * 2**20] * 40), "size", "larger than"),
        (
            _bytes(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", *[b"x"] * 99, pause=0.1),
            "time",
            "within 0.5 s",
        ),
        (_bytes(*[b"H"] * 99, pause=0.1), "time", "within 0.5 s"),
        (_bytes(*[b"HTTP/1.1 102 Processing\r\n\r\n"] * 99, pause=0.02), "time", "within 0.5 s"),
    ],
)
def test_bad_responses_are_refused_with_a_reason(reply: Reply, reason: str, why: str) -> None:
    began = time.monotonic()
    refused, _ = _run(reply, FetchLimits(seconds=0.5 if reason == "time" else 5.0))
    assert isinstance(refused, UrlRefused)
    assert (refused.reason, why in str(refused)) == (reason, True), refused
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status: int, canary: Canary) -> None:
    to = b"http://127.0.0.1:%d/" % canary.port
    refused, _ = _run(
        _bytes(b"HTTP/1.1 %d Elsewhere\r\nLocation: %s\r\nContent-Type: image/png\r\n\r\n" % (status, to))
    )
    assert "redirects" in str(refused)
    assert canary.heard == 0


def test_a_name_server_that_never_answers_costs_its_time_only() -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    began = time.monotonic()
    refused, _ = _run(_ok(PICTURE), FetchLimits(seconds=0.3), resolve=never)
    assert isinstance(refused, UrlRefused)
    assert refused.reason == "time"
    assert time.monotonic() - began < 30


def test_only_so_many_are_fetched_at_a_time() -> None:
    async def slow(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(0.3)
        return []

    async def many() -> list[bytes | BaseException]:
        urls = [f"http://{n}.example/" for n in "abcdefghij"]
        return await asyncio.gather(*(fetch(url, resolve=slow) for url in urls), return_exceptions=True)

    kinds = [type(result) for result in asyncio.run(many())]
    assert (kinds.count(UrlRefused), kinds.count(CouldNot)) == (8, 2)
    assert _run(_ok(PICTURE))[0] == PICTURE, "afterwards there is room again"


def test_the_connection_is_closed_when_it_is_refused() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        _run(_ok(b"<html>", kind=b"text/html"))
    assert len(os.listdir("/proc/self/fd")) <= before + 2


# TLS -----------------------------------------------------------------------------------------------------------


def _certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for `name`, and a client's that trusts it alone."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = folder / "chain.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    chain.write_bytes(secret + certificate.public_bytes(pem))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    return server, ssl.create_default_context(cafile=str(chain))


def test_https_asks_for_the_name_while_it_connects_to_the_checked_address(tmp_path: Path) -> None:
    server, client = _certificate(tmp_path, "pictures.example")
    names: list[str | None] = []
    server.sni_callback = lambda _, name, __: names.append(name)
    body, _ = _run(_ok(PICTURE, _length(PICTURE)), serve=server, tls=client)
    assert (body, names) == (PICTURE, ["pictures.example"])


def test_a_certificate_of_another_name_is_refused(tmp_path: Path) -> None:
    server, client = _certificate(tmp_path, "other.example")
    refused, request = _run(_ok(PICTURE, _length(PICTURE)), serve=server, tls=client)
    assert isinstance(refused, UrlRefused)
    assert "no trusted certificate" in str(refused)
    assert request == b"", "nothing was sent"
