"""A pull is the export of the same version, byte for byte, however often it was killed; or it says why it is not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import http.client
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from lake import open_lake, slices
from lake.client import Client, RequestFailed, pull, pulled_folder
from lake.client.json_requests import JsonRequests
from lake.formats import annotation
from lake.ingest import ingest
from lake.labels import label_events
from lake.open_lake import OpenLake
from lake.slices.export import export
from lake.storage import schema, store
from lake.upkeep import erasure
from search_app.api.app import Api
from search_app.api.routes.curation.pull import MOST_STREAMS
from tests import pictures
from tests.conftest import MakeLake, Say
from tests.crash.service import Service
from tests.forks import Forked
from tests.lake import stock
from tests.search_app.in_process import InProcess

LONG = 30.0  # seconds; only reached when something is wrong
LABELS = ("../é a", "b:c\n", "intact", "")


def labelled(lake: OpenLake, numbers: range, size: int) -> None:
    """Images of random bytes; three of four with a class or a box."""
    names = stock.add(lake, numbers, size=size)
    rows = []
    for number, name in zip(numbers, names, strict=True):
        label, boxed = LABELS[number % 4], number % 8 == 0
        if not label:
            continue
        truth = annotation.GroundTruth("detection", boxes=[annotation.box("a", (1, 1.5, 2, 2))]) if boxed else None
        rows.append(
            {
                "event_id": f"00000000-0000-4000-8000-{number:012}",
                "image_id": name,
                "timestamp": store.now(),
                "task": "detection" if boxed else "classification",
                "label": None if boxed else label,
                "boxes": truth.boxes if truth else None,
                "origin": "human",
            }
        )
    lake.insert("labels", pa.Table.from_pylist(rows, schema=schema.LABELS.arrow()))


@dataclass
class Served:
    """A lake, the URL of its server, and a client of it."""

    lake: OpenLake
    url: str
    client: Client


@contextmanager
def serving(lake: OpenLake) -> Iterator[Served]:
    service = Service(Path(lake.uri))
    with ThreadPoolExecutor(1) as aside:
        aside.submit(lambda: asyncio.run(service.ready())).result()
    url = f"http://127.0.0.1:{service.port}"
    with Client(url, spill=None) as client:
        yield Served(lake, url, client)
    service.kill()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A lake of 320 tiny images; the slice all of the first 300, the slice last of the others."""
    lake = open_lake.create(str(tmp_path_factory.mktemp("pull") / "lake"))
    labelled(lake, range(320), 700)
    slices.create(lake, "all", ids=[stock.image_id(n, 700) for n in range(300)])
    slices.create(lake, "last", ids=[stock.image_id(n, 700) for n in range(300, 320)])
    with serving(lake) as opened:
        yield opened


def files(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, which names the place it came from."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != pulled_folder.MANIFEST
    }


def images_in(folder: Path) -> int:
    return sum(len(names) for root, _, names in os.walk(folder) if ".lakeloop" not in root)


def pull_slowly(url: str, name: str, folder: str, part_bytes: int, pause: float) -> None:
    """Pulls in small parts, so that a kill comes in the middle."""
    pull.PART_BYTES = part_bytes
    Client(url, spill=None).slice(name).pull(folder, progress=lambda count: time.sleep(pause))


def killed(served: Served, name: str, folder: Path, after: int, part_bytes: int = 8_000, pause: float = 0.03) -> None:
    """Pulls in another process, which is killed once `after` images are there."""
    log = folder.with_suffix(".log")
    process = Forked(pull_slowly, (served.url, name, str(folder), part_bytes, pause), log)
    while images_in(folder) < after:
        assert process.poll() is None, log.read_text()
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (folder / pulled_folder.MANIFEST).exists()


def killed_twice(served: Served, tmp_path: Path, count: int, part_bytes: int, pause: float) -> pull.PullReport:
    """Asserts that a pull that was killed twice ends with the files of the export; returns its report."""
    folder = tmp_path / "pulled"
    killed(served, "all", folder, count // 4, part_bytes, pause)
    killed(served, "all", folder, count // 2, part_bytes, pause)
    torn = next((folder / "images").iterdir())
    torn.write_bytes(torn.read_bytes()[:-1] + b"?")  # as a power loss leaves a file: its size, other bytes
    report = served.client.slice("all").pull(folder)
    assert (report.images, report.already) == (count, False)
    in_work = 2 * part_bytes // 700 * pull.MOST_PARTS
    assert max(0, count // 2 - in_work) <= report.resumed < count
    export(served.lake, slices.get(served.lake, "all"), tmp_path / "exported", "jsonl")
    assert (folder / pulled_folder.HASHES).read_bytes() == (tmp_path / "exported" / pulled_folder.HASHES).read_bytes()
    assert not (folder / pulled_folder.STATE).exists()
    return report


def manifest(folder: Path) -> Any:
    return json.loads((folder / pulled_folder.MANIFEST).read_text())


def test_a_pull_killed_twice_equals_the_export(served: Served, tmp_path: Path) -> None:
    killed_twice(served, tmp_path, 300, 8_000, 0.03)
    pulled, exported = tmp_path / "pulled", tmp_path / "exported"
    assert files(pulled) == files(exported)
    assert manifest(pulled) | {"lake": served.lake.uri} == manifest(exported) | {"tag": manifest(pulled)["tag"]}
    again = served.client.slice("all@1").pull(pulled)
    assert (again.already, again.images) == (True, 300)


@pytest.mark.soak
def test_a_pull_of_20_000_images_killed_twice_equals_the_export(make_lake: MakeLake, tmp_path: Path, say: Say) -> None:
    lake = make_lake("many")
    for start in range(0, 20_000, 2_000):
        labelled(lake, range(start, start + 2_000), 20_000)
    slices.create(lake, "all", where="true")
    with serving(lake) as opened:
        report = killed_twice(opened, tmp_path, 20_000, 1 << 20, 0.02)
    say(f"pull of 20,000 images killed twice: {report.resumed:,} kept, equal to the export by hash")


def test_an_imagefolder_equals_the_export(served: Served, tmp_path: Path) -> None:
    pulled, exported = tmp_path / "pulled", tmp_path / "exported"
    seen: list[int] = []
    served.client.slice("all").pull(pulled, "imagefolder", seen.append)
    export(served.lake, slices.get(served.lake, "all"), exported, "imagefolder")
    assert files(pulled) == files(exported)
    assert sum(seen) == 300
    same = ("classes", "unsaid", "files", "bytes", "hashes", "left_out")
    assert [manifest(pulled)[name] for name in same] == [manifest(exported)[name] for name in same]


def test_a_pulled_folder_is_ingested_with_its_labels(make_lake: MakeLake, tmp_path: Path) -> None:
    lake, other = make_lake("from"), make_lake("to")
    pictures.folder(tmp_path / "in", 4)
    ingest.ingest(lake, tmp_path / "in", workers=1)
    names = sorted(lake.scan("images", ["image_id"])["image_id"].to_pylist())
    label_events.write(lake, [{"image_id": names[0], "label": "a"}, {"image_id": names[1], "boxes": []}])
    slices.create(lake, "all", where="true")
    with TestClient(Api(lake)) as client:
        pull.pull(InProcess(client), "all", tmp_path / "pulled")
    report = ingest.ingest(other, tmp_path / "pulled", workers=1)
    assert (report.images_new, report.labels_new) == (4, 2)


def test_a_version_that_changed_is_refused(served: Served, tmp_path: Path) -> None:
    folder = tmp_path / "pulled"
    killed(served, "last", folder, 5, 1_000)
    erasure.forget(served.lake, [stock.image_id(319, 700)])
    with pytest.raises(RequestFailed, match="pull into another folder") as refused:
        served.client.slice("last").pull(folder)
    assert refused.value.reason == "changed"
    assert served.client.slice("last").pull(tmp_path / "other").images == 19
    assert manifest(tmp_path / "other")["erased_before"] == 1


def test_folders_with_other_things_are_refused(served: Served, tmp_path: Path) -> None:
    slices.create(served.lake, "few", ids=[stock.image_id(1, 700)])
    mine = tmp_path / "mine" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    few = served.client.slice("few")
    with pytest.raises(ValueError, match="not an empty folder"):
        few.pull(mine.parent)
    few.pull(tmp_path / "few")
    with pytest.raises(ValueError, match="has few@1 as jsonl; give another folder"):
        served.client.slice("all").pull(tmp_path / "few")
    with pytest.raises(ValueError, match="format is 'coco'"):
        few.pull(tmp_path / "x", "coco")  # type: ignore[arg-type]
    with pytest.raises(RequestFailed, match="no slice 'none'"):
        served.client.slice("none").pull(tmp_path / "x")
    assert [*mine.parent.iterdir()] == [mine]


def test_an_image_without_bytes_is_left_out(make_lake: MakeLake, tmp_path: Path) -> None:
    lake = make_lake()
    labelled(lake, range(3), 700)
    slices.create(lake, "all", where="true")
    gone = stock.image_id(1, 700)
    lake.delete("images", f"image_id = '{gone}'")
    with TestClient(Api(lake)) as client:
        report = pull.pull(InProcess(client), "all", tmp_path / "pulled")
    assert (report.images, report.left_out) == (2, [{"image_id": gone, "reason": "its bytes were not kept"}])
    export(lake, slices.get(lake, "all"), tmp_path / "exported", "jsonl")
    assert files(tmp_path / "pulled") == files(tmp_path / "exported")
    assert manifest(tmp_path / "pulled")["left_out"] == manifest(tmp_path / "exported")["left_out"]


def test_streams_are_few_and_one_that_nobody_reads_ends(make_lake: MakeLake, tmp_path: Path) -> None:
    lake = make_lake("large")
    stock.add(lake, range(24), size=1 << 20)
    slices.create(lake, "all", where="true")
    with serving(lake) as opened:
        port = int(opened.url.rpartition(":")[2])
        connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=LONG) for _ in range(MOST_STREAMS)]
        for connection in connections:
            connection.request("GET", "/v1/slices/all/images")
            assert connection.getresponse().status == 200  # its head; its 24 MB are more than the sockets hold
        requests = JsonRequests(opened.url, lambda: None, LONG)
        with (
            pytest.raises(RequestFailed, match="which is the limit") as refused,
            requests.stream("/v1/slices/all/images"),
        ):
            raise AssertionError
        assert (refused.value.status, refused.value.reason, refused.value.after) == (429, "busy", 1.0)
        for connection in connections:
            connection.close()
        assert opened.client.slice("all").pull(tmp_path / "pulled").images == 24
        requests.close()


# What a server may say -------------------------------------------------------------------------------------

CONTENT = b"an image"
ENTRY = {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest(), "row": "{}"}


class Liar(JsonRequests):
    """A server whose manifest has one file, and whose stream is what it is told."""

    def __init__(self, path: str, content: bytes) -> None:
        super().__init__("http://liar", lambda: None, 1.0)
        self.path, self.content = path, content

    def get(self, path: str, query: Any = None) -> Any:
        entry = {**ENTRY, "path": self.path}
        facts = {
            "slice": "s@1",
            "version": 1,
            "format": "jsonl",
            "definition": "",
            "predictions_version": 1,
            "tag": "t",
        }
        return {**facts, "erased_before": 0, "bytes": ENTRY["bytes"], "unsaid": {}, "items": [entry], "next": None}

    def stream(self, path: str, headers: Any = None) -> Any:
        return contextlib.nullcontext(io.BytesIO(self.content))


@pytest.mark.parametrize(
    "path",
    ["/etc/x", "../x", "images/../../x", "images", "a/b/c", "./x", "images/.", "a/..", ".lakeloop-pull/job.json", "",
     "images/a\0b", "images/a\nb", "images\\x", "C:/x", "images//x", "/x"],
)  # fmt: skip
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(RequestFailed, match="is refused"):
        pull.pull(Liar(path, CONTENT), "s", tmp_path / "in")
    assert {p.parent for p in tmp_path.rglob("*") if p.is_file()} == {tmp_path / "in" / pulled_folder.STATE}


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / pulled_folder.STATE).mkdir(parents=True)
    (tmp_path / "in" / "images").symlink_to(tmp_path / "out")
    with pytest.raises(ValueError, match="is a link"):
        pull.pull(Liar("images/x.png", CONTENT), "s", tmp_path / "in")
    assert not [*(tmp_path / "out").iterdir()]


def test_other_bytes_than_the_hash_says_are_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lake.client.json_requests.FIRST_PAUSE", 0.001)
    with pytest.raises(RequestFailed, match="not those of its hash"):
        pull.pull(Liar("images/x.png", CONTENT[::-1]), "s", tmp_path / "in")
    assert not [*(tmp_path / "in" / "images").iterdir()]
    report = pull.pull(Liar("images/x.png", CONTENT), "s", tmp_path / "in")
    assert ((tmp_path / "in/images/x.png").read_bytes(), report.images) == (CONTENT, 1)


def test_a_stream_that_breaks_off_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lake.client.json_requests.FIRST_PAUSE", 0.001)

    class Flaky(Liar):
        tries = 0

        def stream(self, path: str, headers: Any = None) -> Any:
            self.tries += 1
            if self.tries == 1:
                raise ConnectionResetError("reset")
            return contextlib.nullcontext(io.BytesIO(self.content if self.tries > 2 else self.content[:3]))

    server = Flaky("images/x.png", CONTENT)
    assert (pull.pull(server, "s", tmp_path / "in").images, server.tries) == (1, 3)


def test_a_full_disk_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, file: Any, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pulled_folder.PulledFolder, "write", full)
    with pytest.raises(OSError, match="No space left"):
        pull.pull(Liar("images/x.png", CONTENT), "s", tmp_path / "in")


def test_two_pulls_into_one_folder_do_not_mix(tmp_path: Path) -> None:
    started, ended = threading.Event(), threading.Event()

    class Slow(Liar):
        def stream(self, path: str, headers: Any = None) -> Any:
            started.set()
            assert ended.wait(10)
            return super().stream(path, headers)

    first = threading.Thread(target=pull.pull, args=(Slow("images/x.png", CONTENT), "s", tmp_path / "in"))
    first.start()
    assert started.wait(10)
    with pytest.raises(ValueError, match="another process is pulling"):
        pull.pull(Liar("images/x.png", CONTENT), "s", tmp_path / "in")
    ended.set()
    first.join()
    assert (tmp_path / "in" / pulled_folder.MANIFEST).is_file()
