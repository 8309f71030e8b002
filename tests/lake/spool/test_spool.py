"""The spool: safe when acknowledged, once for each id, in order, and gone when drained."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lake.errors import NewerLake
from lake.spool import journal, segments
from lake.spool.committer import Entry, RepeatedKey
from lake.spool.journal import Receipt
from lake.spool.spool import Spool, abandoned
from tests.lake.live_events import name, picture, prediction, upload, verdict


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool")
    yield opened
    opened.close()


def reopened(spool: Spool) -> Spool:
    """The same spool after its process ended."""
    spool.close()
    return Spool(spool.folder)


def test_acknowledged_events_are_there_after_a_restart(tmp_path: Path) -> None:
    events = [prediction(1, confidence=0.5), upload(picture(2)), verdict(prediction(1))]
    spool = Spool(tmp_path / "spool")
    assert spool.put(events) == ["stored"] * 3
    spool = reopened(spool)
    waiting = spool.oldest(10, 1 << 30)
    assert [(w.kind, w.event_id, w.row, w.digest) for w in waiting] == [
        (e.kind, e.event_id, e.row, e.digest) for e in events
    ]
    assert [spool.data(w) for w in waiting] == [picture(1), picture(2), None]
    spool.close()


def test_an_id_is_stored_once_and_another_body_under_it_is_a_contradiction(spool: Spool) -> None:
    first, other = prediction(1), prediction(1, label="dog")
    assert spool.put([first]) == ["stored"]
    assert spool.put([first, other, first]) == ["known", "contradiction", "known"]
    assert spool.depth().events == 1
    spool.forget(spool.oldest(10, 1 << 30))  # drained
    assert spool.put([first, other]) == ["known", "contradiction"]
    assert spool.depth().events == 0


def test_repeats_within_one_request_are_stored_once(spool: Spool) -> None:
    assert spool.put([prediction(1), prediction(1), prediction(1, label="dog"), prediction(2)]) == [
        "stored", "known", "contradiction", "stored",
    ]  # fmt: skip
    assert spool.depth().events == 2


def test_an_id_may_name_a_prediction_and_a_verdict(spool: Spool) -> None:
    about = prediction(1)
    assert spool.put([about, verdict(about, event_id=about.event_id)]) == ["stored", "stored"]


def test_many_requests_share_a_commit_and_each_hears_of_its_own(spool: Spool) -> None:
    groups: list[int] = []
    spool.on_commit(lambda events, seconds: groups.append(events))
    spool.put([prediction(0)])
    done: list[Entry] = []
    everybody = threading.Event()

    def notify(entries: list[Entry]) -> None:
        done.extend(entries)
        if sum(len(e.events) for e in done) == 60:
            everybody.set()

    with spool._committer._wake:  # the spool's thread waits until all are queued
        entries = [Entry([prediction(2 * i), prediction(2 * i + 1)], notify) for i in range(30)]
        spool._committer._queue.extend(entries)
        spool._committer._wake.notify()
    assert everybody.wait(10)
    assert groups == [1, 60]
    assert entries[0].outcomes == ["known", "stored"]  # 0 was there
    assert all(e.outcomes == ["stored", "stored"] for e in entries[1:])


def test_a_failed_commit_stores_nothing_and_every_request_gets_the_error(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OSError, match="No space"):
        spool.put([prediction(1)])
    monkeypatch.undo()
    assert spool.depth().events == 0
    assert spool.put([prediction(1)]) == ["stored"]


def test_events_are_drained_in_order_and_by_size(spool: Spool) -> None:
    for number in (3, 1, 2):
        spool.put([prediction(number)])
    size = len(picture(3))
    assert [w.event_id for w in spool.oldest(2, 1 << 30)] == [name(3), name(1)]
    assert [w.event_id for w in spool.oldest(9, size)] == [name(3)]
    assert [w.event_id for w in spool.oldest(9, 1)] == [name(3)]  # one at least


def test_a_prediction_and_its_image_are_found_before_and_after_the_drain(spool: Spool) -> None:
    event = prediction(1)
    assert spool.image_of(name(1)) is None
    spool.put([event])
    assert spool.event("prediction", name(1)) is not None
    assert spool.image(event.image_id) == picture(1)
    spool.forget(spool.oldest(1, 1))
    assert spool.event("prediction", name(1)) is None
    assert spool.image_of(name(1)) == event.image_id


def test_segments_go_when_nothing_refers_to_them(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put([prediction(1)])
    files_before = list(spool.segments.iterdir())
    assert len(files_before) == 1
    spool.forget(spool.oldest(1, 1))
    assert list(spool.segments.iterdir()) == files_before  # its writer may go on with it
    spool = reopened(spool)
    assert spool.remove_drained_segments() == 1
    assert list(spool.segments.iterdir()) == []
    spool.close()


def test_a_segment_with_events_stays_when_its_writer_is_gone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put([prediction(1)])
    spool = reopened(spool)
    assert spool.remove_drained_segments() == 0
    assert spool.data(spool.oldest(1, 1)[0]) == picture(1)
    spool.close()


def test_bytes_the_disk_lost_are_noticed(spool: Spool) -> None:
    spool.put([prediction(1)])
    waiting = spool.oldest(1, 1)[0]
    assert waiting.bytes_at is not None
    with (spool.segments / waiting.bytes_at.segment).open("r+b") as file:
        file.seek(waiting.bytes_at.offset + 20)
        file.write(b"\xff")
    assert spool.data(waiting) is None


def test_erased_events_leave_no_byte_behind(spool: Spool) -> None:
    secret, other = prediction(1, note="a secret only this event knows"), prediction(2)
    spool.put([secret, other])
    assert any(picture(1) in p.read_bytes() for p in spool.segments.iterdir())
    with spool.drainer() as mine:
        assert mine
        assert spool.erase([secret.image_id]) == 1
    disk_bytes = b"".join(p.read_bytes() for p in spool.folder.rglob("*") if p.is_file())
    assert picture(1)[8:] not in disk_bytes
    assert b"a secret only this event knows" not in disk_bytes
    assert [spool.data(w) for w in spool.oldest(9, 1 << 30)] == [picture(2)]
    assert spool.put([secret]) == ["known"]  # a retry does not bring it back


def test_a_receipt_under_an_idempotency_key_is_kept_with_its_event(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    notified = threading.Event()
    entry = Entry([prediction(1)], lambda _: notified.set(), "key", b"digest", '{"image_id": "1"}')
    spool.submit(entry)
    assert notified.wait(10)
    spool = reopened(spool)
    assert spool.receipt("key") == Receipt(b"digest", '{"image_id": "1"}', ["stored"])
    assert spool.receipt("other") is None
    spool.close()


def test_two_requests_under_one_key_at_the_same_moment_are_stored_once(spool: Spool) -> None:
    """A caller that gives up and tries again may find the first still on its way; the events' ids are the server's."""
    done: list[Entry] = []
    both_done = threading.Event()

    def notify(entries: list[Entry]) -> None:
        done.extend(entries)
        if len(done) == 2:
            both_done.set()

    def entry(number: int) -> Entry:
        return Entry([prediction(number)], notify, "key", b"digest", str(number))

    spool.put([prediction(0)])
    with spool._committer._wake:  # the spool's thread waits until both are queued
        spool._committer._queue.extend([entry(1), entry(2)])
        spool._committer._wake.notify()
    assert both_done.wait(10)
    assert [type(e.error) for e in done] == [type(None), RepeatedKey]
    assert spool.depth().events == 2
    assert spool.receipt("key") == Receipt(b"digest", "1", ["stored"])


def test_keys_and_ids_are_forgotten_after_a_week(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.put([prediction(1)])
    spool.forget(spool.oldest(1, 1))
    week = journal.REMEMBERED_SECONDS + 1
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + week)
    spool.put([prediction(2)])
    spool.forget(spool.oldest(1, 1))
    assert spool.image_of(name(1)) is None
    assert spool.image_of(name(2)) is not None


def test_one_drains_at_a_time_and_the_lock_ends_with_its_process(spool: Spool) -> None:
    code = (
        "import sys, pathlib; from lake.spool.spool import Spool\n"
        "with Spool(pathlib.Path(sys.argv[1])).drainer() as mine:\n"
        "    print(mine, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(spool.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == b"True\n"
    with spool.drainer() as mine:
        assert not mine
    other.kill()
    other.wait()
    other.stdout.close()
    other.stdin.close()
    with spool.drainer() as mine:
        assert mine


def test_a_spool_is_abandoned_when_no_server_holds_it(tmp_path: Path) -> None:
    assert not abandoned(tmp_path / "none")
    spool = Spool(tmp_path / "spool")
    assert abandoned(spool.folder)
    spool.hold()
    assert not abandoned(spool.folder)
    spool.close()
    assert abandoned(spool.folder)


def test_two_processes_write_to_one_spool(spool: Spool) -> None:
    code = (
        "import sys, pathlib; sys.path.insert(0, '.')\n"
        "from lake.spool.spool import Spool; from tests.lake.live_events import prediction\n"
        "box = Spool(pathlib.Path(sys.argv[1]))\n"
        "print([box.put([prediction(i)])[0] for i in range(20)].count('stored')); box.close()"
    )
    root = Path(__file__).parents[3]
    others = [
        subprocess.Popen([sys.executable, "-c", code, str(spool.folder)], stdout=subprocess.PIPE, text=True, cwd=root)
        for _ in range(2)
    ]
    mine = [spool.put([prediction(i)])[0] for i in range(20)].count("stored")
    counts = [int(other.communicate(timeout=60)[0]) for other in others]
    assert mine + sum(counts) == 20  # each id once, whoever was first
    assert spool.depth().events == 20


def test_a_full_segment_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEAL_BYTES", 100)
    writer = segments.SegmentWriter(tmp_path)
    first = writer.append([b"a" * 60, b"b" * 60])
    second = writer.append([b"c" * 10])
    assert first[0].segment == first[1].segment != second[0].segment
    assert [segments.read(tmp_path, p) for p in (*first, *second)] == [b"a" * 60, b"b" * 60, b"c" * 10]
    assert segments.remove_unused(tmp_path, lambda name: False) == 1  # the sealed one
    writer.seal()
    assert segments.remove_unused(tmp_path, lambda name: False) == 1


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.writev
    monkeypatch.setattr(os, "writev", lambda file, blobs: whole(file, [blobs[0][:3]]))
    writer = segments.SegmentWriter(tmp_path)
    places = writer.append([b"abcdef", b"ghi"])
    assert [segments.read(tmp_path, p) for p in places] == [b"abcdef", b"ghi"]
    writer.seal()


def test_a_spool_of_a_later_release_is_refused(spool: Spool) -> None:
    with closing(sqlite3.connect(spool.folder / "spool.sqlite")) as database:
        database.execute(f"PRAGMA user_version={journal.VERSION + 1}")
    with pytest.raises(NewerLake, match="later release"):
        Spool(spool.folder)
