"""One event never stops the others: what cannot be written is parked with its reason, whatever is wrong with it."""

from __future__ import annotations

import errno
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from lake import open_lake
from lake.errors import BadInput
from lake.open_lake import OpenLake
from lake.spool import batch as batch_module
from lake.spool import events, faults
from lake.spool.drain import Drainer, drain
from lake.spool.spool import Spool
from lake.storage import indexes
from lake.upkeep import doctor
from search_app.cli import main as cli
from tests.conftest import Say
from tests.forks import Forked
from tests.lake import stock
from tests.lake.live_events import name, picture, prediction, upload, verdict
from tests.lake.spool.fatal_drainer import drain_and_die


@pytest.fixture
def spool(lk: OpenLake) -> Iterator[Spool]:
    assert lk.folder is not None
    opened = Spool(lk.folder / "spool")
    yield opened
    opened.close()


def with_vectors(lk: OpenLake) -> OpenLake:
    """A lake with a vector column and an index of its rows: into both together, Lance writes no row over 25 MiB."""
    stock.add(lk, range(10**6, 10**6 + 10))
    vectors = pa.field("emb_x", pa.list_(pa.float32(), stock.DIM))
    lk.add_column("samples", vectors)
    indexes.complete(lk, "samples")
    return lk


def oversized(number: int) -> events.Event:
    """An event that an earlier release acknowledged: its row has 26 MiB, which Lance refuses."""
    event = prediction(number)
    event.row = json.dumps(json.loads(event.row) | {"metadata": "x" * (26 << 20)})
    return event


def drained(lk: OpenLake) -> set[str]:
    return set(lk.sql("SELECT prediction_id FROM predictions WHERE label = 'cat'")["prediction_id"].to_pylist())


def test_a_row_that_lance_refuses_is_parked_and_the_others_go_on(lk: OpenLake, spool: Spool) -> None:
    with_vectors(lk)
    spool.put([prediction(1), oversized(2), prediction(3), upload(picture(4))])
    report = drain(lk, spool)
    assert report is not None
    assert (report.predictions, report.parked) == (3, 1)
    assert drained(lk) == {name(1), name(3)}
    [parked] = spool.parked.list()
    assert parked.event_id == name(2)
    assert "its row has 26.0 MiB; Lance writes less than 25" in parked.reason
    assert lk.dataset("audit").count_rows() == 3


def test_a_fault_that_no_row_shows_is_found_by_halving(
    lk: OpenLake, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.put([prediction(i) for i in range(20)])
    write, batches = batch_module.Batch.write, []

    def written(batch: batch_module.Batch) -> batch_module.DrainReport:
        batches.append(len(batch.waiting))
        if any(event.event_id == name(13) for event in batch.waiting):
            raise type("PanicException", (BaseException,), {})("index out of bounds")
        return write(batch)

    monkeypatch.setattr(batch_module.Batch, "write", written)
    drain(lk, spool)
    assert drained(lk) == {name(i) for i in range(20)} - {name(13)}
    assert [(event.event_id, event.reason) for event in spool.parked.list()] == [
        (name(13), "PanicException: index out of bounds")
    ]
    assert batches == [20, 10, 10, 5, 2, 3, 1, 2, 1, 1, 5]


def test_an_event_larger_than_4_mib_is_refused_before_it_is_acknowledged() -> None:
    prediction(1, note="x" * (events.MOST_BYTES - 1000))
    with pytest.raises(BadInput, match=r"the event has 4\.0 MiB without its image; at most 4 are allowed"):
        prediction(1, note="x" * events.MOST_BYTES)
    with pytest.raises(BadInput, match="without its image"):
        prediction(1, note="é" * (events.MOST_BYTES // 2))


def test_a_batch_is_bounded_by_the_bytes_of_its_rows(spool: Spool) -> None:
    spool.put([prediction(i, note="x" * 100_000) for i in range(20)])
    assert len(spool.oldest(100, 1_000_000)) == 9
    assert len(spool.oldest(100, 10)) == 1


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ENAMETOOLONG, "File name too long"), False),
        (OSError("LanceError(IO): Generic LocalFileSystem error: ... (os error 28)"), True),
        (OSError("LanceError(IO): Generic S3 error: connection closed"), True),
        (OSError("LanceError(IO): Not found: lake/samples.lance/data/1.lance"), True),
        (OSError("Invalid user input: a single row is 27269772 bytes"), False),
        (pa.ArrowInvalid("Could not convert"), False),
        (MemoryError(), True),
        (BadInput("no table"), True),
        (KeyboardInterrupt(), True),
        (type("PanicException", (BaseException,), {})("index out of bounds"), False),
    ],
)
def test_faults_of_the_machine_pass_and_faults_of_the_content_do_not(error: BaseException, passes: bool) -> None:
    assert faults.may_pass(error) == passes


def test_while_the_disk_fails_no_event_is_parked(lk: OpenLake, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    spool.put([prediction(1), prediction(2)])

    def full() -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lk, "sync", full)
    with pytest.raises(OSError, match="Input/output"):
        drain(lk, spool)
    monkeypatch.undo()
    assert (spool.depth().events, spool.depth().parked) == (2, 0)
    assert drain(lk, spool) is not None
    assert drained(lk) == {name(1), name(2)}


def test_an_event_that_ends_the_drainer_is_found_and_parked(lk: OpenLake, spool: Spool, tmp_path: Path) -> None:
    """A crash of the whole process, as an abort in Lance or the kernel's out-of-memory killer would end it."""
    spool.put([prediction(i) for i in range(40)])
    deaths = 0
    while spool.depth().events:
        process = Forked(drain_and_die, (lk.uri, name(25)), tmp_path / "log")
        process.wait()
        deaths += process.returncode == -signal.SIGABRT
        assert deaths < 6
    assert deaths == 4  # in batches of 40, 5, 1 and 1
    [parked] = spool.parked.list()
    assert (parked.event_id, parked.reason) == (name(25), "the drainer ended while it wrote this event")
    assert drained(open_lake.open(lk.uri)) == {name(i) for i in range(40)} - {name(25)}


def test_a_kill_that_is_no_events_fault_parks_none(lk: OpenLake, spool: Spool) -> None:
    """The power may fail while the only waiting event is written, and after it was written and forgotten."""
    spool.put([prediction(1), prediction(2)])
    [first] = spool.oldest(1, 1 << 20)
    file = faults.BatchFile(spool.folder)
    for last in (first.seq, first.seq - 1):
        file.begin(1, last, 0)
        with Drainer(lk, spool):
            assert spool.parked.list() == []
    file.begin(1, first.seq, 0)
    assert drain(lk, spool) is not None
    assert drained(lk) == {name(1), name(2)}


def test_a_parked_event_is_tried_again_after_an_upgrade_only(
    lk: OpenLake, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vectors(lk)
    spool.put([oversized(1)])
    drain(lk, spool)
    with Drainer(lk, spool):
        assert spool.depth().events == 0
    monkeypatch.setattr("lake.spool.parked._VERSION", "lakeloop 9.9: ")
    with Drainer(lk, spool):
        assert spool.depth().events == 1


def test_parked_events_are_listed_retried_and_dropped(
    lk: OpenLake, spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    with_vectors(lk)
    spool.put([prediction(1), oversized(2), oversized(3)])
    drain(lk, spool)
    first, second = name(2), name(3)

    def run(*words: str) -> str:
        code = cli.main(["spool", "parked", *words, "--lake", lk.uri])
        output = capsys.readouterr()
        return f"{code} {output.out}{output.err}"

    assert "Lance writes less than 25" in run("list")
    assert [entry["event_id"] for entry in json.loads(run("list", "--json")[2:])] == [first, second]
    [finding] = [f for f in doctor.examine(lk.uri, spools=[spool]).findings if f.check == "spool"]
    assert f"prediction {first}" in finding.what
    assert run("retry", second).startswith("0 1 events wait again")
    assert (spool.depth().events, spool.depth().parked) == (1, 1)
    assert run("drop", first).startswith("0 dropped 1")
    assert run("drop", first).startswith("2 ")
    assert spool.depth().parked == 0
    assert lk.sql("SELECT target FROM audit WHERE action = 'spool drop'").num_rows == 1


def _mixed(hostile: int, count: int) -> list[events.Event]:
    made: dict[int, Callable[[int], events.Event]] = {
        0: oversized,
        1: lambda i: _with_row(i, '{"model": "m", "label": "x", "confidence": "not a number"}'),
        2: lambda i: _with_row(i, '{"model": "m", "label": "x", "scores": [{"label": 7}]}'),
        3: lambda i: _with_row(i, "not JSON"),
        4: lambda i: prediction(i, data=picture(i)[:40]),
    }
    every = count // hostile
    return [made[i // every % 5](i) if i % every == 0 else prediction(i) for i in range(count)]


def _with_row(number: int, row: str) -> events.Event:
    event = prediction(number)
    event.row = row
    return event


def mix(lk: OpenLake, spool: Spool, count: int, say: Say) -> None:
    """1 % of the events are faulty in five ways: the sound ones come in, the others are parked or lack their image."""
    with_vectors(lk)
    stream = _mixed(count // 100, count)
    for first in range(0, count, 500):
        spool.put(stream[first : first + 500])
    report = drain(lk, spool)
    assert report is not None
    unfit = {event.event_id for event in spool.parked.list(count)}
    assert drained(lk) == {event.event_id for event in stream} - unfit
    assert unfit == {name(i) for i in range(0, count, 100) if i // 100 % 5 != 4}
    assert spool.depth().events == 0
    say(f"drain: {count:,} events, {len(unfit)} of them parked, {report.seconds:.1f} s")


def test_one_percent_of_faulty_events_delay_no_other(lk: OpenLake, spool: Spool, say: Say) -> None:
    mix(lk, spool, 500, say)


@pytest.mark.soak
def test_one_percent_of_faulty_events_delay_no_other_at_length(lk: OpenLake, spool: Spool, say: Say) -> None:
    mix(lk, spool, 10_000, say)


def test_a_verdict_on_a_parked_prediction_is_drained(lk: OpenLake, spool: Spool) -> None:
    with_vectors(lk)
    bad = oversized(1)
    spool.put([bad, verdict(bad)])
    drain(lk, spool)
    assert lk.dataset("reviews").count_rows() == 1
