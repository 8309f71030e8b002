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
from tests.lake.live import answer, name, picture, upload, verdict


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Spool]:
    opened = Spool(tmp_path / "spool")
    yield opened
    opened.close()


def reopened(box: Spool) -> Spool:
    """The same spool after its process ended."""
    box.close()
    return Spool(box.folder)


def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    events = [answer(1, confidence=0.5), upload(picture(2)), verdict(answer(1))]
    box = Spool(tmp_path / "spool")
    assert box.put(events) == ["stored"] * 3
    box = reopened(box)
    waiting = box.oldest(10, 1 << 30)
    assert [(w.kind, w.event_id, w.row, w.digest) for w in waiting] == [
        (e.kind, e.event_id, e.row, e.digest) for e in events
    ]
    assert [box.data(w) for w in waiting] == [picture(1), picture(2), None]
    box.close()


def test_an_id_is_stored_once_and_another_body_under_it_is_told(box: Spool) -> None:
    first, other = answer(1), answer(1, label="dog")
    assert box.put([first]) == ["stored"]
    assert box.put([first, other, first]) == ["known", "contradiction", "known"]
    assert box.depth().events == 1
    box.forget(box.oldest(10, 1 << 30))  # drained
    assert box.put([first, other]) == ["known", "contradiction"]
    assert box.depth().events == 0


def test_repeats_within_one_request_are_stored_once(box: Spool) -> None:
    assert box.put([answer(1), answer(1), answer(1, label="dog"), answer(2)]) == [
        "stored", "known", "contradiction", "stored",
    ]  # fmt: skip
    assert box.depth().events == 2


def test_an_id_may_name_an_answer_and_a_verdict(box: Spool) -> None:
    about = answer(1)
    assert box.put([about, verdict(about, event_id=about.event_id)]) == ["stored", "stored"]


def test_many_requests_share_a_commit_and_each_hears_of_its_own(box: Spool) -> None:
    groups: list[int] = []
    box.on_commit(lambda events, seconds: groups.append(events))
    box.put([answer(0)])
    done: list[Entry] = []
    everybody = threading.Event()

    def notify(entries: list[Entry]) -> None:
        done.extend(entries)
        if sum(len(e.events) for e in done) == 60:
            everybody.set()

    with box._committer._wake:  # the spool's thread waits until all are queued
        entries = [Entry([answer(2 * i), answer(2 * i + 1)], notify) for i in range(30)]
        box._committer._queue.extend(entries)
        box._committer._wake.notify()
    assert everybody.wait(10)
    assert groups == [1, 60]
    assert entries[0].outcomes == ["known", "stored"]  # 0 was there
    assert all(e.outcomes == ["stored", "stored"] for e in entries[1:])


def test_a_failed_commit_stores_nothing_and_everybody_is_told(box: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(OSError, match="No space"):
        box.put([answer(1)])
    monkeypatch.undo()
    assert box.depth().events == 0
    assert box.put([answer(1)]) == ["stored"]


def test_events_are_drained_in_order_and_by_size(box: Spool) -> None:
    for number in (3, 1, 2):
        box.put([answer(number)])
    size = len(picture(3))
    assert [w.event_id for w in box.oldest(2, 1 << 30)] == [name(3), name(1)]
    assert [w.event_id for w in box.oldest(9, size)] == [name(3)]
    assert [w.event_id for w in box.oldest(9, 1)] == [name(3)]  # one at least


def test_an_answer_and_its_image_are_found_before_and_after_the_drain(box: Spool) -> None:
    event = answer(1)
    assert box.image_of(name(1)) is None
    box.put([event])
    assert box.event("prediction", name(1)) is not None
    assert box.image(event.image_id) == picture(1)
    box.forget(box.oldest(1, 1))
    assert box.event("prediction", name(1)) is None
    assert box.image_of(name(1)) == event.image_id


def test_segments_go_when_nothing_refers_to_them(tmp_path: Path) -> None:
    box = Spool(tmp_path / "spool")
    box.put([answer(1)])
    held = list(box.segments.iterdir())
    assert len(held) == 1
    box.forget(box.oldest(1, 1))
    assert list(box.segments.iterdir()) == held  # its writer may go on with it
    box = reopened(box)
    assert box.remove_drained_segments() == 1
    assert list(box.segments.iterdir()) == []
    box.close()


def test_a_segment_with_events_stays_when_its_writer_is_gone(tmp_path: Path) -> None:
    box = Spool(tmp_path / "spool")
    box.put([answer(1)])
    box = reopened(box)
    assert box.remove_drained_segments() == 0
    assert box.data(box.oldest(1, 1)[0]) == picture(1)
    box.close()


def test_bytes_the_disk_lost_are_noticed(box: Spool) -> None:
    box.put([answer(1)])
    waiting = box.oldest(1, 1)[0]
    assert waiting.bytes_at is not None
    with (box.segments / waiting.bytes_at.segment).open("r+b") as file:
        file.seek(waiting.bytes_at.offset + 20)
        file.write(b"\xff")
    assert box.data(waiting) is None


def test_erased_events_leave_no_byte_behind(box: Spool) -> None:
    secret, kept = answer(1, note="a secret only this event knows"), answer(2)
    box.put([secret, kept])
    assert any(picture(1) in p.read_bytes() for p in box.segments.iterdir())
    with box.drainer() as mine:
        assert mine
        assert box.erase([secret.image_id]) == 1
    found = b"".join(p.read_bytes() for p in box.folder.rglob("*") if p.is_file())
    assert picture(1)[8:] not in found
    assert b"a secret only this event knows" not in found
    assert [box.data(w) for w in box.oldest(9, 1 << 30)] == [picture(2)]
    assert box.put([secret]) == ["known"]  # a retry does not bring it back


def test_a_receipt_under_an_idempotency_key_is_kept_with_its_event(tmp_path: Path) -> None:
    box = Spool(tmp_path / "spool")
    told = threading.Event()
    entry = Entry([answer(1)], lambda _: told.set(), "key", b"digest", '{"image_id": "1"}')
    box.submit(entry)
    assert told.wait(10)
    box = reopened(box)
    assert box.receipt("key") == Receipt(b"digest", '{"image_id": "1"}', ["stored"])
    assert box.receipt("other") is None
    box.close()


def test_two_requests_under_one_key_at_the_same_moment_are_stored_once(box: Spool) -> None:
    """A caller that gives up and tries again may find the first still on its way; the events' ids are the server's."""
    done: list[Entry] = []
    both = threading.Event()

    def notify(entries: list[Entry]) -> None:
        done.extend(entries)
        if len(done) == 2:
            both.set()

    def entry(number: int) -> Entry:
        return Entry([answer(number)], notify, "key", b"digest", str(number))

    box.put([answer(0)])
    with box._committer._wake:  # the spool's thread waits until both are queued
        box._committer._queue.extend([entry(1), entry(2)])
        box._committer._wake.notify()
    assert both.wait(10)
    assert [type(e.error) for e in done] == [type(None), RepeatedKey]
    assert box.depth().events == 2
    assert box.receipt("key") == Receipt(b"digest", "1", ["stored"])


def test_keys_and_ids_are_forgotten_after_a_week(box: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    box.put([answer(1)])
    box.forget(box.oldest(1, 1))
    week = journal.REMEMBERED_SECONDS + 1
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + week)
    box.put([answer(2)])
    box.forget(box.oldest(1, 1))
    assert box.image_of(name(1)) is None
    assert box.image_of(name(2)) is not None


def test_one_drains_at_a_time_and_the_lock_ends_with_its_process(box: Spool) -> None:
    code = (
        "import sys, pathlib; from lake.spool.spool import Spool\n"
        "with Spool(pathlib.Path(sys.argv[1])).drainer() as mine:\n"
        "    print(mine, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(box.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == b"True\n"
    with box.drainer() as mine:
        assert not mine
    other.kill()
    other.wait()
    other.stdout.close()
    other.stdin.close()
    with box.drainer() as mine:
        assert mine


def test_a_spool_is_abandoned_when_no_server_holds_it(tmp_path: Path) -> None:
    assert not abandoned(tmp_path / "none")
    box = Spool(tmp_path / "spool")
    assert abandoned(box.folder)
    box.hold()
    assert not abandoned(box.folder)
    box.close()
    assert abandoned(box.folder)


def test_two_processes_write_to_one_spool(box: Spool) -> None:
    code = (
        "import sys, pathlib; sys.path.insert(0, '.')\n"
        "from lake.spool.spool import Spool; from tests.lake.live import answer\n"
        "box = Spool(pathlib.Path(sys.argv[1]))\n"
        "print([box.put([answer(i)])[0] for i in range(20)].count('stored')); box.close()"
    )
    root = Path(__file__).parents[3]
    others = [
        subprocess.Popen([sys.executable, "-c", code, str(box.folder)], stdout=subprocess.PIPE, text=True, cwd=root)
        for _ in range(2)
    ]
    mine = [box.put([answer(i)])[0] for i in range(20)].count("stored")
    counts = [int(other.communicate(timeout=60)[0]) for other in others]
    assert mine + sum(counts) == 20  # each id once, whoever was first
    assert box.depth().events == 20


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


def test_a_spool_of_a_later_release_is_refused(box: Spool) -> None:
    with closing(sqlite3.connect(box.folder / "spool.sqlite")) as database:
        database.execute(f"PRAGMA user_version={journal.VERSION + 1}")
    with pytest.raises(NewerLake, match="later release"):
        Spool(box.folder)
