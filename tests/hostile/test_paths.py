"""Names and ids that try to be paths: through every route and every field, on a real server that is watched.

Beside the lake lies a canary: a file nobody may read, in a folder nobody may change. The kernel's own list of opened
files says whether somebody did.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import socket
import unicodedata
import uuid
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import httpx
import pyarrow as pa
import pytest

from lake import slices
from lake.open_lake import OpenLake
from lake.slices import export
from lake.storage import schema
from lake.storage.store import now
from tests.conftest import MakeLake, Say
from tests.crash.service import Service
from tests.hostile import files
from tests.hostile.conftest import Serve
from tests.search_app.api_client import JSON, api_client, event, named, picture

CANARY = "canary-7f3a"
SECRET = b"the secret of the canary"
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def names(canary: Path) -> list[str]:
    """Names that would lead to the canary, or break code that uses them as file names."""
    up, absolute = f"../{canary.parent.name}/{canary.name}", str(canary)
    ways = [
        *[("../" * depth) + f"{CANARY}/secret.txt" for depth in range(1, 8)], up, absolute, "/" + absolute,
        f"./{up}", f"a/../{up}", f"....//....//{CANARY}/secret.txt", f"..;/{CANARY}/secret.txt",
        f"..\\{CANARY}\\secret.txt", f"..\\..\\{CANARY}\\secret.txt", f"C:\\{CANARY}\\secret.txt",
        f"\\\\127.0.0.1\\{CANARY}\\secret.txt", f"//127.0.0.1/{CANARY}/secret.txt", f"file://{absolute}",
        f"{absolute}\0.jpg", f"x\0{absolute}", f"~/{CANARY}", f"$HOME/{CANARY}", f"$(cat {absolute})",
        f"`cat {absolute}`", f"|cat {absolute}", f"{absolute}#", f"{absolute}?x=1", f"{absolute}%00.jpg",
        f"/proc/self/root{absolute}", f"/proc/self/cwd/{CANARY}", f"/dev/fd/../../{CANARY}",
        "..", ".", "", " ", "/", "\\", "-", "--help", "*", "?",
        "CON", "NUL", "aux.txt", "COM1", "LPT1.jpg", "con.", "a.", "a ", "name:stream", ".lake", "images.lance",
        "../keys.lance", "../spool/spool.sqlite", "a" * 255, "a" * 4_096, "a/" * 2_000, "\u202ecod.exe",
        unicodedata.normalize("NFD", "ü" * 80), unicodedata.normalize("NFC", "ü" * 80), "\ufeff", "\u2025/\u2025/x",
        "．．／", "a\nb", "a\rb", "a\tb", "\x7f", "\x1b[0m", "😀" * 60,
    ]  # fmt: skip
    return list(dict.fromkeys(ways))


def spellings(name: str) -> list[bytes]:
    """The name as a part of a URL, as honest and hostile clients write it."""
    once = quote(name, safe="")
    plain = name.encode()
    return [
        once.encode(),
        quote(once, safe="").encode(),
        quote(name, safe="/.").encode(),
        once.replace(".", "%2e").replace("-", "%2d").encode(),
        plain.replace(b" ", b"%20"),
        once.replace("%2F", "%c0%af").replace(".", "%c0%ae").encode(),
        once.replace("%2F", "%ef%bc%8f").encode(),
        once.replace("%2F", "%u2215").encode(),
    ]


PLACES = [
    f"{start}/" for start in (
        "/v1/images", "/v1/thumbnails", "/v1/queries", "/v1/records", "/v1/predictions", "/v1", "", "/static", "/media",
        "/component", "/_stcore/bidi-components", "/app/static", "/_stcore/upload_file/a", "/search",
    )
]  # fmt: skip


class Wire:
    """Requests as they are written, byte by byte, over one connection after another."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._socket: socket.socket | None = None

    def get(self, target: bytes) -> tuple[int, dict[str, str], bytes]:
        for _ in range(2):
            reused = self._socket is not None
            connection = self._socket or socket.create_connection(("127.0.0.1", self.port), timeout=30)
            self._socket = connection
            try:
                connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                answer = http.client.HTTPResponse(connection)
                answer.begin()
                body = answer.read()
            except (ConnectionError, http.client.BadStatusLine):
                self.close()
                if reused:
                    continue
                raise
            if answer.will_close:
                self.close()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body
        raise AssertionError(f"no answer to {target[:80]!r}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def _gets(service: Service, canary: Path, step: int) -> Counter[int]:
    counts: Counter[int] = Counter()
    wire = Wire(service.port)
    targets = [
        prefix.encode() + spelling for prefix in PLACES for name in names(canary) for spelling in spellings(name)
    ]
    for target in dict.fromkeys(targets[::step]):
        if re.search(rb"[\0-\x20\x7f-\xff]", target):
            target = quote(target, safe=b"/%.\\").encode() if len(target) % 2 else re.sub(rb"[\0-\x20]", b"", target)
        status, headers, body = wire.get(target)
        counts[status] += 1
        assert status < 500, (target, body[:300])
        assert SECRET not in body, target
        assert CANARY.encode() not in body or "json" in headers["content-type"], target  # it may repeat the request
        if status in (301, 302, 303, 307, 308):
            # A redirect to //host would be one to anywhere.
            assert re.match(r"(http://127\.0\.0\.1(:\d+)?)?/(?![/\\])", headers["location"]), (
                target,
                headers["location"],
            )
        if status == 200 and target.startswith(b"/v1/"):
            raise AssertionError(f"{target!r} is something: {body[:200]!r}")
    wire.close()
    return counts


def _posts(service: Service, canary: Path) -> Counter[int]:
    """The names in every field of an event, a verdict, a search and a header."""
    counts: Counter[int] = Counter()
    image = picture(1)
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=30) as client:
        client.post("/v1/images", content=image, headers={"Content-Type": "image/png"}).raise_for_status()
        about = event(image_id=named(image))
        client.post("/v1/predictions", json=about).raise_for_status()
        for name in names(canary):
            fields = ("label", "source", "image", "file_name", "path", "model", "task", "model_version", "shift", name)
            requests = [
                ("/v1/predictions", event(image_id=named(image), **dict.fromkeys(fields, name))),
                ("/v1/predictions", event(image_id=name)),
                ("/v1/predictions", event(image_id=named(image), masks=name)),
                ("/v1/predictions", event(image_id=named(image), masks=[{"png": name}])),
                ("/v1/predictions", event(image_id=named(image)) | {"prediction_id": name}),
                ("/v1/feedback", {"prediction_id": about["prediction_id"], "verdict": "unsure", "comment": name[:999]}),
                ("/v1/feedback", {"prediction_id": name, "verdict": "unsure", "event_id": name}),
                ("/v1/images", {"url": name}),
                ("/v1/search", {"ids": [name], "embedder": name[:199], "columns": [name]}),
                ("/v1/search", {"text": name, "where": f"source = '{name}'"}),
            ]
            for path, body in requests:
                key = uuid.uuid4().hex + re.sub(r"[^!-~]", "", name)[:160]
                answer = client.post(path, content=json.dumps(body), headers=JSON | {"Idempotency-Key": key})
                counts[answer.status_code] += 1
                assert answer.status_code < 500 or answer.status_code == 503, (path, name, answer.text)
                assert SECRET not in answer.content
    return counts


def _tree(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _opened(trace: Path) -> set[tuple[str, bool]]:
    """(path, for writing) of every file that was opened, made, moved or removed, from strace's lines."""
    paths = set()
    for line in trace.read_text(errors="replace").splitlines():
        for path in re.findall(r'"((?:[^"\\]|\\.)*)"', line):
            paths.add((path, bool(re.search(r"O_WRONLY|O_RDWR|O_CREAT|mkdir|rename|unlink|link", line))))
    return paths


def _check_paths(
    make_lake: MakeLake, folder: Path, serve: Serve, say: Say, step: int, around: tuple[str, ...], trace: Path
) -> None:
    lake = make_lake("paths", columns={"shift": "string"})
    canary = folder / CANARY / "secret.txt"
    canary.parent.mkdir()
    canary.write_bytes(SECRET)
    (folder / "neighbour.lake").mkdir()
    (folder / "neighbour.lake" / "file").write_bytes(SECRET)
    before = {name: _tree(folder / name) for name in (CANARY, "neighbour.lake")}
    listed = {path.name for path in folder.iterdir()}
    service = serve(lake, ui=True, around=around)
    posted = _posts(service, canary)
    requests = _gets(service, canary, step)
    assert "Traceback" not in service.output(), service.output()[-3_000:]
    service.kill()
    assert {name: _tree(folder / name) for name in before} == before
    assert {path.name for path in folder.iterdir()} - listed <= {service.log.name, trace.name}
    opened = _opened(trace)
    touched = {path for path, _ in opened if CANARY in path or "neighbour.lake" in path or path == "/etc/passwd"}
    inside = (lake.uri, "/proc/", "/dev/", "/sys/", "/tmp/", "/root/", "/var/tmp/")
    written = {path for path, writes in opened if writes and path.startswith("/") and not path.startswith(inside)}
    gets = f"{requests.total():,} gets {dict(requests)}"
    say(
        f"names as paths: {len(names(canary))} names, {posted.total():,} posts {dict(posted)}, {gets}; "
        f"{len(opened):,} files touched by the server, {len(touched)} of them outside"
    )
    assert touched == set()
    assert written == set()
    assert requests.total() > 500
    assert set(requests) <= {200, 301, 307, 400, 404, 405, 422, 431}


@needs_strace
def test_no_name_leads_out_of_the_lake(make_lake: MakeLake, tmp_path: Path, serve: Serve, say: Say) -> None:
    trace = tmp_path / "trace"
    calls = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat"
    around = ("strace", "-f", "--seccomp-bpf", "-qq", "-s", "300", "-e", f"trace={calls}", "-o", str(trace))
    _check_paths(make_lake, tmp_path, serve, say, 9, around, trace)


def test_labels_become_folders_inside_the_exported_one(lk: OpenLake, tmp_path: Path, say: Say) -> None:
    canary = tmp_path / CANARY / "secret.txt"
    canary.parent.mkdir()
    canary.write_bytes(SECRET)
    labels = [name for name in names(canary) if name]
    with api_client(lk, tmp_path / "spool") as service:
        images = [picture(number) for number in range(len(labels))]
        for image in images:
            service.upload(image)
        service.drain()
    rows = [
        {"event_id": str(uuid.uuid4()), "image_id": named(image), "timestamp": now(), "task": "classification",
         "label": label, "origin": "human"}
        for image, label in zip(images, labels, strict=True)
    ]  # fmt: skip
    lk.insert("labels", pa.Table.from_pylist(rows, schema=schema.LABELS.arrow()))
    slice_ = slices.create(lk, "all", where="true")
    out = tmp_path / "out"
    before = _tree(canary.parent)
    assert export.export(lk, slice_, out, "imagefolder").images == len(labels)
    assert _tree(canary.parent) == before
    written = [path for path in out.rglob("*/*") if path.is_file()]
    assert len(written) == len(labels)
    assert all(path.parent.parent == out for path in written)
    # No two labels share a folder, on file systems too that see no difference between cases and forms of writing.
    folders = [path.parent.name for path in written]
    assert len({unicodedata.normalize("NFC", folder).casefold() for folder in folders}) == len(labels)
    assert not {folder.split(".")[0].casefold() for folder in folders} & {"", "..", "."}
    say(f"export: {len(labels)} labels as folders, all inside")


def test_images_are_served_only_as_images(lk: OpenLake, tmp_path: Path) -> None:
    inputs = {**files.valid(), **{n: d for n, d in files.bombs().items() if "markup" in n or "a zip" in n}}
    with api_client(lk, tmp_path / "spool") as service:
        for _ in range(2):  # while they wait, and when they are stored
            for name, data in inputs.items():
                service.upload(data)
                answer = service.client.get(f"/v1/images/{named(data)}")
                assert answer.content == data, name
                assert re.fullmatch(r"image/(jpeg|png|webp|gif|bmp|tiff)", answer.headers["content-type"]), name
                assert answer.headers["x-content-type-options"] == "nosniff"
                assert answer.headers["content-security-policy"].startswith("default-src 'none'; frame")
                assert answer.headers["cross-origin-resource-policy"] == "same-origin"
            service.drain()
        for name, data in inputs.items():
            small = service.client.get(f"/v1/thumbnails/{named(data)}")
            assert small.headers["content-type"] == "image/jpeg", name
            assert files.MARKUP not in small.content
            assert small.headers["x-content-type-options"] == "nosniff"
