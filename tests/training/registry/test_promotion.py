"""The registry on a real lake: versions, promotion and its verdicts, rollback, shadows; two processes at once."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import timedelta
from itertools import chain, product
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from lake import slices
from lake.errors import BadInput, LakeBusy
from lake.open_lake import OpenLake
from lake.storage import schema, store, views
from lake.upkeep import erasure
from tests.lake import stock
from training.evaluation import gate
from training.models import trained_model
from training.registry import promotion, releases, runs, versions
from training.registry.recipe import Recipe


def done(lake: OpenLake, name: str = "turns", data: dict[str, object] | None = None, parent: str | None = None) -> str:
    """A finished run with a file; its id."""
    run = runs.create(lake, name, Recipe(kind="probe"), data=data or {}, classes=["down", "up"], parent=parent)
    path = runs.folder(lake, run.id) / "model.safetensors"
    path.write_bytes(run.id.encode())
    return runs.end(lake, run, "done", artifacts={"model": runs.artifact(lake, path)}).id


def judge(lake: OpenLake, candidate: str, baseline: str, blocks: bool = False) -> str:
    """A verdict as the gate writes it; its id."""
    name = f"{lake.dataset('gates').count_rows():08x}"
    row = {"id": name, "candidate": candidate, "baseline": baseline, "blocks": blocks, "policy": "{}", "slices": "[]"}
    row |= {"outcome": "failed" if blocks else "passed", "at": store.now()}
    lake.insert("gates", pa.Table.from_pylist([row], schema=schema.GATES.arrow()))
    return name


def test_after_a_rollback_every_reader_of_the_registry_means_the_same_run(lk: OpenLake) -> None:
    first, second, third = (done(lk) for _ in range(3))
    steps = [(1, first, "promoted"), (2, second, "promoted"), (2, second, "rolled_back")]
    rows = [
        {"event_id": str(n), "model": "turns", "version": version, "run": run, "action": action}
        | {"timestamp": store.now()}
        for n, (version, run, action) in enumerate(steps)
    ]
    lk.insert("releases", pa.Table.from_pylist(rows, schema=schema.RELEASES.arrow()))
    assert trained_model.find(lk, "turns").id == first
    assert gate._baseline(lk, runs.get(lk, third)).id == first


def test_a_run_that_is_done_becomes_the_next_version_of_its_model_once(lk: OpenLake) -> None:
    first, second, other = done(lk), done(lk), done(lk, "signs")
    version = promotion.register(lk, first, "the first")
    assert (version.id, version.run, version.status, version.reason, version.gate) == (
        "turns@1",
        first,
        "registered",
        "the first",
        None,
    )
    assert promotion.register(lk, first[:6]) == version
    assert [promotion.register(lk, run).id for run in (second, other)] == ["turns@2", "signs@1"]
    assert [version.id for version in versions.list(lk)] == ["signs@1", "turns@1", "turns@2"]
    assert versions.get(lk, "turns@2") == versions.get(lk, second) == versions.list(lk, "turns")[1]
    running = runs.create(lk, "turns", Recipe(kind="probe"), data={}, classes=["up"])
    with pytest.raises(BadInput, match=f"run {running.id} is running: only a run that is done"):
        promotion.register(lk, running.id)
    with pytest.raises(BadInput, match="no version 'turn@2'; did you mean turns@2"):
        versions.get(lk, "turn@2")
    with pytest.raises(BadInput, match=r"no version 'turns@3'; did you mean .* model turns has turns@1, turns@2"):
        promotion.promote(lk, "turns@3")
    with pytest.raises(BadInput, match=r"name a version of .turns.; its newest is turns@2"):
        promotion.promote(lk, "turns")
    unregistered = done(lk)
    with pytest.raises(BadInput, match=f"lakeloop models register {unregistered}"):
        promotion.retire(lk, unregistered)
    assert len(releases.history(lk, "turns")) == 2


def test_what_replaces_another_needs_the_newest_verdict_against_it_not_to_block(lk: OpenLake) -> None:
    first, second, third = (done(lk) for _ in range(3))
    version = promotion.promote(lk, first)  # nothing to fall behind
    assert (version.id, version.status, version.gate) == ("turns@1", "promoted", None)
    with pytest.raises(BadInput, match="turns@1 is promoted already, since 2"):
        promotion.promote(lk, "turns@1")
    command = f"run: lakeloop gate --candidate {second} --baseline {first}"
    with pytest.raises(BadInput, match=rf"run {second} has no gate verdict against turns@1, .*{command}"):
        promotion.promote(lk, second)
    assert [version.id for version in versions.list(lk, "turns")] == ["turns@1"]  # what is refused gets no number
    promotion.register(lk, second)
    judge(lk, first, second)  # the other way round
    judge(lk, second, third)  # against another
    with pytest.raises(BadInput, match="has no gate verdict against"):
        promotion.promote(lk, "turns@2")
    good = judge(lk, second, first)
    bad = judge(lk, second, first, blocks=True)
    with pytest.raises(BadInput, match=f"gate {bad} blocks turns@2 from replacing turns@1: failed"):
        promotion.promote(lk, "turns@2")
    with pytest.raises(BadInput, match=f"gate '{good}' is not the newest verdict on turns@2 against turns@1: {bad} is"):
        promotion.promote(lk, "turns@2", gate=good)
    newest = judge(lk, second, first)
    assert promotion.promote(lk, "turns@2", gate=newest, reason="better at night").gate == newest
    assert trained_model.find(lk, "turns").id == second
    # Against the gate: with a reason only, and on the record.
    no = judge(lk, third, second, blocks=True)
    with pytest.raises(BadInput, match="needs a reason"):
        promotion.promote(lk, third, force=True, reason=" ")
    version = promotion.promote(lk, third, force=True, reason="the line stands still")
    assert (version.id, version.status, version.gate, version.reason) == (
        "turns@3",
        "promoted",
        no,
        "forced: the line stands still",
    )
    assert [version.status for version in versions.list(lk)] == ["registered", "registered", "promoted"]


def test_a_rollback_goes_from_version_to_version_and_what_was_taken_back_is_judged_anew(lk: OpenLake) -> None:
    with pytest.raises(BadInput, match="no model 'turns'"):
        promotion.rollback(lk, "turns")
    first, second, third = (done(lk) for _ in range(3))
    promotion.register(lk, first)
    with pytest.raises(BadInput, match="no version of turns is promoted"):
        promotion.rollback(lk, "turns")
    promotion.promote(lk, first)
    with pytest.raises(BadInput, match="turns@1 is the only promoted version of turns"):
        promotion.rollback(lk, "turns")
    judge(lk, second, first)
    promotion.promote(lk, second)
    judge(lk, third, second)
    promotion.promote(lk, third)
    assert promotion.rollback(lk, "turns", "blind at dusk").id == "turns@2"
    assert versions.get(lk, third).reason == "blind at dusk"
    assert [entry.action for entry in releases.history(lk, "turns")][-1] == "rolled_back"
    with pytest.raises(BadInput, match=r"turns@3 was rolled back at .* evaluate it again: lakeloop gate"):
        promotion.promote(lk, third)
    assert promotion.rollback(lk, "turns").id == "turns@1"
    with pytest.raises(BadInput, match="only promoted version"):
        promotion.rollback(lk, "turns")
    judge(lk, third, first)
    promotion.promote(lk, third)
    assert [version.id for version in versions.promotion_stack(lk, "turns")] == ["turns@1", "turns@3"]


def test_shadows_answer_until_they_are_promoted_or_retired_and_the_retired_can_come_back(lk: OpenLake) -> None:
    first, second, third = (done(lk) for _ in range(3))
    promotion.promote(lk, first)
    assert promotion.shadow(lk, second).status == "shadow"
    promotion.shadow(lk, third, "to compare")
    promotion.shadow(lk, "turns@3")  # once
    assert [version.id for version in versions.shadows(lk, "turns")] == ["turns@2", "turns@3"]
    assert promotion.retire(lk, "turns@3", "too slow").status == "retired"
    assert [version.id for version in versions.shadows(lk, "turns")] == ["turns@2"]
    for refused in (promotion.promote, promotion.shadow):
        with pytest.raises(BadInput, match=f"turns@3 is retired; to use it again: lakeloop models register {third}"):
            refused(lk, "turns@3")
    with pytest.raises(BadInput, match="turns@1 is promoted; promote another version, or roll back"):
        promotion.retire(lk, first)
    with pytest.raises(BadInput, match="turns@1 is promoted: only a version"):
        promotion.shadow(lk, first)
    judge(lk, second, first)
    promotion.promote(lk, second)
    assert versions.shadows(lk, "turns") == []
    # Nothing goes back to a version that was retired.
    promotion.retire(lk, first)
    with pytest.raises(BadInput, match="turns@2 is the only promoted version"):
        promotion.rollback(lk, "turns")
    assert promotion.register(lk, first, "again").status == "registered"
    assert len(releases.history(lk, "turns")) == 10


def test_without_a_promoted_version_a_model_is_its_newest_run_that_is_in_use(lk: OpenLake) -> None:
    old, new = done(lk), done(lk)
    assert trained_model.find(lk, "turns").id == new
    promotion.register(lk, new)
    promotion.retire(lk, new)
    assert trained_model.find(lk, "turns").id == old
    assert trained_model.find(lk, "turns@1").id == new
    assert trained_model.find(lk, new).id == new


@pytest.mark.parametrize("spoil", ["missing", "altered"])
def test_a_version_whose_file_is_not_the_one_its_run_wrote_is_not_put_into_production(lk: OpenLake, spoil: str) -> None:
    first, second = done(lk), done(lk)
    promotion.promote(lk, first)
    judge(lk, second, first)
    paths = {run: runs.folder(lk, run) / "model.safetensors" for run in (first, second)}

    def spoiled(path: Path) -> None:
        path.unlink() if spoil == "missing" else path.write_bytes(b"another")

    spoiled(paths[second])
    message = "is missing at .*; restore it" if spoil == "missing" else "its SHA-256 differs"
    for refused in (promotion.promote, promotion.shadow):
        with pytest.raises(BadInput, match=message):
            refused(lk, second)
    assert versions.promoted(lk, "turns") == versions.get(lk, first)
    paths[second].write_bytes(second.encode())
    promotion.promote(lk, second)
    spoiled(paths[first])
    with pytest.raises(BadInput, match=message):
        promotion.rollback(lk, "turns")
    assert versions.promoted(lk, "turns") == versions.get(lk, second)


# Others at the same time ---------------------------------------------------------------------------------------


def test_of_two_processes_that_promote_at_once_one_does_and_the_other_says_so(lk: OpenLake, tmp_path: Path) -> None:
    base, rivals = done(lk), [done(lk), done(lk)]
    promotion.promote(lk, base)
    for run in rivals:
        judge(lk, run, base)
    there = Path(__file__).parents[1] / "promoting.py"
    started = [
        subprocess.Popen(
            [sys.executable, str(there), lk.uri, run, str(tmp_path / "go")], stdout=subprocess.PIPE, text=True
        )
        for run in rivals
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=60)[0].strip() for process in started]
    won = [text for text in outputs if text.startswith("promoted")]
    lost = [text for text in outputs if not text.startswith("promoted")]
    assert len(won) == 1
    assert re.search("another process was faster|has no gate verdict against", lost[0])
    assert [event.action for event in releases.history(lk, "turns")].count("promoted") == 2
    assert f"promoted {versions.promoted(lk, 'turns').id}" == won[0]  # type: ignore[union-attr]


def test_of_two_that_saw_the_same_one_writes_and_the_other_decides_anew(lk: OpenLake) -> None:
    base, mine, rival = (done(lk) for _ in range(3))
    promotion.promote(lk, base)
    seen: list[int] = []

    def decide(entries: list[releases.ReleaseEvent]) -> releases.ReleaseEvent:
        seen.append(len(entries))
        if len(seen) == 1:
            promotion.register(OpenLake(lk.uri), rival)
        number = 1 + max(event.version for event in entries)
        return releases.next_event(entries, "registered", model="turns", version=number, run=mine)

    written = releases.append(lk, "turns", decide)
    assert seen == [2, 3]
    assert [(event.version, event.run) for event in written[2:]] == [(2, rival), (3, mine)]
    assert releases.history(lk, "turns") == written


def test_a_promotion_and_a_rollback_that_were_overtaken_change_nothing(
    lk: OpenLake, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (done(lk) for _ in range(3))
    promotion.promote(lk, first)
    judge(lk, second, first)
    judge(lk, third, first)
    promotion.register(lk, third)
    other, judged, checked = OpenLake(lk.uri), promotion._gate_check, runs.model_file

    def overtaken(*how: Any) -> Any:
        monkeypatch.setattr(promotion, "_gate_check", judged)
        promotion.promote(other, second)
        return judged(*how)

    monkeypatch.setattr(promotion, "_gate_check", overtaken)
    with pytest.raises(LakeBusy, match=r"another process was faster: turns@3 is promoted now, before it was turns@1"):
        promotion.promote(lk, third)
    assert [version.id for version in versions.promotion_stack(lk, "turns")] == ["turns@1", "turns@3"]

    def retired_meanwhile(lake: OpenLake, run: runs.Run) -> Path:
        promotion.retire(other, first)
        return checked(lake, run)

    monkeypatch.setattr(runs, "model_file", retired_meanwhile)
    with pytest.raises(LakeBusy, match="another process was faster: turns@1 is retired"):
        promotion.rollback(lk, "turns")
    assert [version.id for version in versions.promotion_stack(lk, "turns")] == ["turns@3"]


def test_a_clock_that_goes_back_does_not_turn_the_order_round(lk: OpenLake, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = done(lk), done(lk)
    promotion.promote(lk, first)
    judge(lk, second, first)
    long_ago = store.now() - timedelta(days=1)
    monkeypatch.setattr(store, "now", lambda: long_ago)
    promotion.promote(lk, second)
    assert [entry.version for entry in releases.history(lk, "turns")] == [1, 1, 2, 2]
    assert trained_model.find(lk, "turns").id == second


# The views -----------------------------------------------------------------------------------------------------


def test_the_view_models_says_what_the_registry_says() -> None:
    """After every sequence of up to four steps on two versions (the first on version 1), each a model of its own."""
    start, logs = store.now(), list[list[releases.ReleaseEvent]]()
    steps = [*product(releases.ACTIONS, (1, 2))]
    first = [(action, 1) for action in releases.ACTIONS]
    for sequence in chain.from_iterable(product(first, *[steps] * n) for n in range(4)):
        name = f"m{len(logs):05}"
        logs.append(
            [
                releases.ReleaseEvent(
                    f"{name}:{n}",
                    name,
                    version,
                    f"{name} run {version}",
                    action,
                    f"g{n}" if n % 2 and action == "promoted" else None,
                    None if n % 2 else f"r{n}",
                    start + timedelta(seconds=n),
                    *((n / 10, "{}") if action == "canary" else ()),
                )
                for n, (action, version) in enumerate(sequence)
            ]
        )
    rows = [vars(event) for log in logs for event in log]
    with duckdb.connect(":memory:") as room:
        room.execute("SET TimeZone = 'UTC'")
        room.register("releases", pa.Table.from_pylist(rows, schema=schema.RELEASES.arrow()))
        text = views.VIEWS["models"][1]
        shown = room.sql(f"SELECT * FROM ({text}) ORDER BY model, version").to_arrow_table().to_pylist()
    assert len(logs) == 6 + 72 + 864 + 10_368
    assert shown == [vars(version) for log in logs for version in versions.of_events(log)]
    for log in logs:
        there = [version.version for version in versions.of_events(log) if version.status == "promoted"]
        assert there == versions.promoted_numbers(log)[-1:]


@pytest.fixture
def served(lk: OpenLake) -> OpenLake:
    """12 labelled images; `some` has 0 to 5, `held` 6 to 7; a version of `turns` answered about 8 and 9, another model
    about 10.
    """
    names = stock.add(lk, range(12))
    labels = [
        {"event_id": f"e{n}", "image_id": name, "timestamp": store.now(), "task": "classification"}
        | {"label": "up" if n % 2 else "down", "origin": "human"}
        for n, name in enumerate(names)
    ]
    lk.insert("labels", pa.Table.from_pylist(labels, schema=schema.LABELS.arrow()))
    slices.create(lk, "some", ids=names[:6])
    slices.create(lk, "held", ids=names[6:8])
    used = [{"id": "some@1", "use": "train"}, {"id": "held@1", "use": "test"}]
    promotion.promote(lk, done(lk, data={"slices": used}))
    answers = [
        {
            "prediction_id": f"p{n}",
            "image_id": names[n],
            "model": kind,
            "model_version": "1",
            "ingested_at": store.now(),
        }
        for n, kind in ((8, "turns"), (9, "turns"), (10, "elsewhere"))
    ]
    lk.insert("samples", pa.Table.from_pylist(answers, schema=schema.SAMPLES.arrow()))
    return lk


def test_from_an_image_to_the_predictions_it_had_part_in_and_back(served: OpenLake) -> None:
    run = versions.get(served, "turns@1").run
    there = served.sql(
        "SELECT * FROM lineage WHERE image_id = ? ORDER BY prediction_id", [stock.image_id(3)]
    ).to_pylist()
    chain: dict[str, Any] = {
        "image_id": stock.image_id(3),
        "label_event": "e3",
        "task": "classification",
        "label": "up",
    }
    chain |= {"slice": "some@1", "use": "train", "run": run, "model": "turns", "version": 1}
    assert there == [chain | {"prediction_id": name} for name in ("p8", "p9")]
    back = served.sql("SELECT * FROM lineage WHERE prediction_id = 'p9' ORDER BY image_id").to_pylist()
    assert len(back) == 8
    assert chain | {"prediction_id": "p9"} in back
    assert {(row["use"], row["slice"]) for row in back} == {("train", "some@1"), ("test", "held@1")}
    assert served.sql("SELECT * FROM lineage WHERE prediction_id = 'p10'").num_rows == 0  # nobody's here
    # In a slice that no run was given: the chain ends there.
    slices.create(served, "spare", ids=[stock.image_id(11)])
    row = served.sql("SELECT * FROM lineage WHERE image_id = ?", [stock.image_id(11)]).to_pylist()
    assert [(r["label"], r["slice"], r["run"], r["prediction_id"]) for r in row] == [("up", "spare@1", None, None)]


def test_the_chain_is_of_the_labels_a_slice_was_frozen_with(served: OpenLake) -> None:
    row = {"event_id": "later", "image_id": stock.image_id(3), "timestamp": store.now(), "task": "classification"}
    row |= {"label": "sideways", "origin": "human"}
    served.insert("labels", pa.Table.from_pylist([row], schema=schema.LABELS.arrow()))
    table = served.sql("SELECT DISTINCT label_event FROM lineage WHERE image_id = ?", [stock.image_id(3)])
    assert table["label_event"].to_pylist() == ["e3"]


def test_an_erased_image_still_says_which_models_learnt_from_it(served: OpenLake) -> None:
    erasure.forget(served, [stock.image_id(3)], alone=True)
    table = served.sql(
        "SELECT DISTINCT label, slice, model, version FROM lineage WHERE image_id = ?", [stock.image_id(3)]
    )
    assert table.to_pylist() == [{"label": None, "slice": "some@1", "model": "turns", "version": 1}]
    assert served.sql("SELECT * FROM lineage WHERE prediction_id = 'p9'").num_rows == 8
    erasure.forget(served, [stock.image_id(9)], alone=True)  # the image that was asked about
    assert served.sql("SELECT * FROM lineage WHERE prediction_id = 'p9'").num_rows == 0
    assert served.sql("SELECT * FROM lineage WHERE prediction_id = 'p8'").num_rows == 8
    assert versions.get(served, "turns@1").status == "promoted"


def test_a_prediction_leads_to_its_run_though_the_slices_are_gone(served: OpenLake) -> None:
    for name in ("some", "held"):
        with pytest.raises(BadInput, match=f"run .* depends on {name}@1"):
            slices.delete(served, slices.get(served, name))
        served.delete("slices", f"name = '{name}'")  # a lake that lost them
        served.delete("slice_members", f"name = '{name}'")
    rows = served.sql(
        "SELECT slice, use, run, image_id FROM lineage WHERE prediction_id = 'p8' ORDER BY slice"
    ).to_pylist()
    run = versions.get(served, "turns@1").run
    assert [tuple(row.values()) for row in rows] == [("held@1", "test", run, None), ("some@1", "train", run, None)]
    bare = done(served, "bare")  # a run without slices, as weights from elsewhere are
    promotion.promote(served, bare)
    row = {"prediction_id": "p11", "image_id": stock.image_id(11), "model": "bare", "model_version": "1"}
    rows = [row | {"ingested_at": store.now()}]
    served.insert("samples", pa.Table.from_pylist(rows, schema=schema.SAMPLES.arrow()))
    rows = served.sql("SELECT run, slice FROM lineage WHERE prediction_id = 'p11'").to_pylist()
    assert rows == [{"run": bare, "slice": None}]
