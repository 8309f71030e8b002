"""A run on every slice: beside an older one, with the gate's verdict, and the images on which the two differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.components import empty_states
from search_app.ui.components.grid import image_grid
from search_app.ui.components.report import Block, link, report
from search_app.ui.components.report import trained as blocks
from search_app.ui.data import model_record
from search_app.ui.pages.models.wording import SIGNS, named, signed, when
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images
from search_app.ui.text.roles import ROLES

if TYPE_CHECKING:
    from training.evaluation.comparison import SliceChange
    from training.registry.runs import Run

MOST_SHOWN = 2_000
SIDES = {"wrong": "Newly wrong", "right": "Newly right"}


def others(run: Run) -> list[str]:
    """The runs it can be compared with, the newest first: finished ones of its task."""
    every = model_record.runs()
    found = [one for one in every if one.task == run.task and one.status == "done" and one.id != run.id]
    return [one.id for one in sorted(found, key=lambda one: one.model != run.model)]


def against(run: Run, known: list[str]) -> str:
    """The one it is compared with: chosen, promoted, judged against, gone on from, or the one before it."""
    mine = [one for one in model_record.versions() if one.model == run.model]
    wanted = [
        session.param("old"),
        *(one.run for one in mine if one.status == "promoted"),
        *(row["baseline"] for row in model_record.verdicts() if row["candidate"] == run.id),
        run.parent,
    ]
    earlier = [one.id for one in model_record.runs() if one.id in known and one.started_at < run.started_at]
    same = [one for one in earlier if one in {r.id for r in model_record.runs() if r.model == run.model}]
    return next((one for one in [*wanted, *same, *earlier] if one in known), known[0])


def run_name(name: str) -> str:
    """`solar@2 · run 1a2b3c4d, promoted`."""
    version = next((one for one in model_record.versions() if one.run == name), None)
    if version is not None:
        return f"{version.id} · run {name}" + (", promoted" if version.status == "promoted" else "")
    run = next((one for one in model_record.runs() if one.id == name), None)
    return f"{run.model} · run {name}" if run else f"run {name}"


def judged_names() -> list[str]:
    """The slices that are judged today, without their versions."""
    from lake import slices

    return sorted({one.name for one in slices.newest(session.lake(), ("evaluation", "regression"))})


def show(run: Run) -> None:
    """The view."""
    if run.status != "done":
        return empty_states.empty(
            "Not trained yet", "Slices are judged when the run is done. Its curves show how far it is."
        )
    try:
        known = model_record.evaluated(run.id)
    except LakeloopError:
        return empty_states.empty(
            "Nothing judges it yet",
            "No slice has the role “for evaluation” or “for regression”. Give one of them on the page **Slices**: what "
            "is kept out of training shows how good a model is.",
            for_this_lake("slice", "role", "NAME", "evaluation"),
        )
    candidates = others(run)
    old = against(run, candidates) if candidates else None
    gate = model_record.verdict(run.id, old) if old else None
    if not known and gate is None:
        return empty_states.empty(
            "It was not asked yet",
            "**Evaluate** above has it answer every evaluation and regression slice. Each image is asked once.",
            for_this_lake("evaluate", run.id),
        )
    from training.metrics import metric_registry

    offered = metric_registry.of_task(run.task)
    with st.container(horizontal=True, vertical_alignment="bottom", key="compared"):
        if old is not None:
            chosen = st.selectbox(
                "Compared with",
                candidates,
                candidates.index(old),
                format_func=run_name,
                width=320,
                key=f"old-{run.id}-{old}",
            )
            if chosen != old:
                session.put(old=chosen, cut=None, open=None, sel=None)
                st.rerun()
        metric = session.param("by") if session.param("by") in offered else offered[0]
        by = st.selectbox(
            "Measured by", offered, offered.index(metric), format_func=named, width=220, key=f"by-{run.id}-{metric}"
        )
        if by != metric:
            session.put(by=by)
            st.rerun()
    if old is None:
        return _alone(run, metric)
    return _beside(run, old, gate, metric)


def _alone(run: Run, metric: str) -> None:
    """The first run has nothing to be compared with."""
    rows = [row for row in model_record.figures(run.id) if row["metric"] == metric]
    found = [
        blocks.change(
            link(row["slice"], "slices", set=row["slice"]), "", None, count(row["n"]), (None, None, None),
            (row["value"], row["low"], row["high"]), ("–", "", False), ("–", "–"),
        )
        for row in rows
    ]  # fmt: skip
    note = "There is no other finished run of this task to compare it with: the next one will stand beside it."
    report([[blocks.changes("Every slice", ("old", "this run"), found, note)]], key=f"alone-{run.id}")


def _beside(run: Run, old: str, gate: model_record.Row | None, metric: str) -> None:
    try:
        with st.spinner("Comparing on every slice …", show_time=True):
            found = model_record.compare(old, run.id, metric)
    except LakeloopError as error:
        if gate is not None:
            report([[_verdict(gate)]], key=f"verdict-{run.id}")
        return empty_states.empty(
            "The two cannot be compared yet",
            f"{escape(str(error))}. **Gate** above has both answer what is missing.",
        )
    judged = {} if gate is None else {one["slice"]: one for one in gate["slices"]}
    chosen = next((one for one in found if one.slice == session.param("cut")), None) or _first(found, judged)
    rows = [_row(one, judged.get(one.slice), run, chosen) for one in found]
    if gate is not None:
        gone = sorted(judged.keys() - {one.slice for one in found})
        note = f"The gate also judged {', '.join(gone)}: not judged any more, or in another version." if gone else ""
    else:
        note = (
            "The intervals are for reading. Whether it may be promoted is the gate's to say: **Gate** above.".replace(
                "**", ""
            )
        )
    title = f"{named(metric).capitalize()} on every slice, the largest fall first"
    table = blocks.changes(title, (f"old: {run_name(old)}", f"new: {run_name(run.id)}"), rows, note)
    report([[_verdict(gate)] if gate is not None else [_no_gate(run, old)], [table]], key=f"changes-{run.id}")
    if chosen is not None:
        _galleries(chosen, run)


def _first(found: list[SliceChange], judged: dict[str, Any]) -> SliceChange | None:
    """The slice whose images are looked at first: one that blocks, else the largest fall with images to show."""
    blocking = [one for one in found if judged.get(one.slice, {}).get("blocks")]
    moved = [one for one in found if one.newly_wrong or one.newly_right]
    return next(iter([*blocking, *moved]), None)


def _verdict(gate: model_record.Row) -> Block:
    n = len(gate["slices"])
    named_by = {one: [part["slice"] for part in gate["slices"] if part["outcome"] == one] for one in SIGNS}
    parts = [f"{len(some)} {outcome}" for outcome, some in named_by.items() if some]
    if gate["blocks"]:
        head = f"{gate['outcome'].capitalize()}: it must not replace {run_name(gate['baseline'])}"
    elif gate["outcome"] == "passed":
        head = f"Passed: it may replace {run_name(gate['baseline'])}"
    else:
        head = f"{gate['outcome'].capitalize()}, and nothing blocks: it may replace {run_name(gate['baseline'])}"
    policy = gate["policy"]
    note = (
        f"{n} {'slice' if n == 1 else 'slices'}: {', '.join(parts)}. A fall up to {policy['margin']:g} is put up with. "
        f"Gate {gate['id']}, {when(gate['at'])} UTC."
    )
    return blocks.verdict(gate["outcome"], SIGNS[gate["outcome"]], head, note, gate["blocks"])


def _no_gate(run: Run, old: str) -> Block:
    note = "Whether it may replace it is the gate's to say: “Gate …” above."
    return blocks.verdict("undecided", "·", f"Not judged against {run_name(old)} yet", note, False)


def _row(one: SliceChange, judged: dict[str, Any] | None, run: Run, chosen: SliceChange | None) -> Block:
    small = [ROLES.get(one.role or "", ROLES[""])]
    if judged is not None and judged["standing"] != "judged":
        small.append(judged["standing"])
    if judged is not None and judged["blocks"]:
        small.append("blocks")
    fall, low, high = ((None if end is None else -end) for end in (one.fall, one.high, one.low))
    interval = "" if low is None or high is None else f"{signed(low)} to {signed(high)}"
    surely = one.low is not None and one.low > 0
    sentence = ""
    if judged is not None:
        sentence = judged["sentence"].removeprefix(f"{one.slice}: ").replace("->", "→")
        sentence = f"{sentence[:1].upper()}{sentence[1:]}."
    return blocks.change(
        link(one.slice, "models", run=run.id, cut=one.slice, old=session.param("old") or None,
             by=session.param("by") or None),
        ", ".join(small),
        None if judged is None else (judged["outcome"], SIGNS[judged["outcome"]]),
        count(one.n),
        (one.old.value, one.old.low, one.old.high),
        (one.new.value, one.new.low, one.new.high),
        (signed(fall), interval, surely or (judged is not None and judged["outcome"] == "failed")),
        (_turned(one, "wrong", run), _turned(one, "right", run)),
        sentence,
        judged is not None and judged["blocks"],
        chosen is one,
    )  # fmt: skip


def _turned(one: SliceChange, side: str, run: Run) -> Any:
    found = one.newly_wrong if side == "wrong" else one.newly_right
    if not found:
        return "0"
    old, by = session.param("old") or None, session.param("by") or None
    return link(count(len(found)), "models", run=run.id, cut=one.slice, side=side, old=old, by=by)


def _galleries(one: SliceChange, run: Run) -> None:
    found = {"wrong": one.newly_wrong, "right": one.newly_right}
    asked = session.param("side")
    side = asked if asked in SIDES else "wrong" if one.newly_wrong else "right"
    with st.container(horizontal=True, vertical_alignment="center", key="gallery"):
        st.markdown(f"**{escape(one.slice)}**", width="content")
        titles = {name: f"{title} {len(found[name]):,}" for name, title in SIDES.items()}
        session.switch("side", titles, side, key=f"side-{run.id}", label="Images")
    if not found[side]:
        st.caption(f"No image of {escape(one.slice)} is {SIDES[side].lower()}.")
        return
    rows = model_record.answers(run.id, found[side][:MOST_SHOWN])
    title = f"{SIDES[side]}: {images(len(found[side]))}, as run {run.id} answers"
    image_grid(rows, "confidence", title, key=f"turned-{side}")
