"""The view Slices of a run: metrics beside an older run, the gate verdict, the changed images."""

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
    """The runs it can be compared with: finished runs of its task, those of its model first, then the newest first."""
    candidates = [r for r in model_record.runs() if r.task == run.task and r.status == "done" and r.id != run.id]
    return [r.id for r in sorted(candidates, key=lambda r: r.model != run.model)]


def against(run: Run, known: list[str]) -> str:
    """The run it is compared with: the chosen or promoted run, a gate's baseline, its parent, or the run before it."""
    wanted = [
        session.param("old"),
        *(v.run for v in model_record.versions() if v.model == run.model and v.status == "promoted"),
        *(row["baseline"] for row in model_record.verdicts() if row["candidate"] == run.id),
        run.parent,
    ]
    earlier = [r for r in model_record.runs() if r.id in known and r.started_at < run.started_at]
    earlier.sort(key=lambda r: r.model != run.model)
    return next((id for id in [*wanted, *(r.id for r in earlier)] if id in known), known[0])


def run_name(name: str) -> str:
    """`solar@2 · run 1a2b3c4d, promoted`."""
    version = next((version for version in model_record.versions() if version.run == name), None)
    if version is not None:
        return f"{version.id} · run {name}" + (", promoted" if version.status == "promoted" else "")
    run = next((run for run in model_record.runs() if run.id == name), None)
    return f"{run.model} · run {name}" if run else f"run {name}"


def slice_names() -> list[str]:
    """The names of all evaluation and regression slices."""
    from lake import slices

    return sorted({slice_.name for slice_ in slices.newest(session.lake(), ("evaluation", "regression"))})


def show(run: Run) -> None:
    """The view."""
    if run.status != "done":
        return empty_states.empty(
            "Not trained yet", "Evaluate the run when it is done. The view Curves shows its progress."
        )
    try:
        known = model_record.evaluated(run.id)
    except LakeloopError:
        return empty_states.empty(
            "No evaluation slice yet",
            "No slice has the role “for evaluation” or “for regression”. Set a role on the page **Slices**. Images "
            "kept out of training show how good a model is.",
            for_this_lake("slice", "role", "NAME", "evaluation"),
        )
    candidates = others(run)
    old = against(run, candidates) if candidates else None
    gate = model_record.verdict(run.id, old) if old else None
    if not known and gate is None:
        return empty_states.empty(
            "Not evaluated yet",
            "**Evaluate** above predicts and measures every evaluation and regression slice.",
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
            "Metric", offered, offered.index(metric), format_func=named, width=220, key=f"by-{run.id}-{metric}"
        )
        if by != metric:
            session.put(by=by)
            st.rerun()
    if old is None:
        return _alone(run, metric)
    return _beside(run, old, gate, metric)


def _alone(run: Run, metric: str) -> None:
    """A run without another run to compare it with."""
    rows = [row for row in model_record.figures(run.id) if row["metric"] == metric]
    changes = [
        blocks.change(
            link(row["slice"], "slices", set=row["slice"]), "", None, count(row["n"]), (None, None, None),
            (row["value"], row["low"], row["high"]), ("–", "", False), ("–", "–"),
        )
        for row in rows
    ]  # fmt: skip
    note = "There is no other finished run of this task to compare it with."
    report([[blocks.changes("Slices", ("old", "this run"), changes, note)]], key=f"alone-{run.id}")


def _beside(run: Run, old: str, gate: model_record.Row | None, metric: str) -> None:
    try:
        with st.spinner("Comparing on every slice …", show_time=True):
            changes = model_record.compare(old, run.id, metric)
    except LakeloopError as error:
        if gate is not None:
            report([[_verdict(gate)]], key=f"verdict-{run.id}")
        return empty_states.empty(
            "The two runs cannot be compared yet",
            f"{escape(str(error))}. **Gate** above evaluates what is missing on both.",
        )
    verdicts = {} if gate is None else {verdict["slice"]: verdict for verdict in gate["slices"]}
    selected = next((change for change in changes if change.slice == session.param("cut")), None)
    chosen = selected or _first(changes, verdicts)
    rows = [_row(change, verdicts.get(change.slice), run, chosen) for change in changes]
    if gate is not None:
        gone = sorted(verdicts.keys() - {change.slice for change in changes})
        note = f"The gate also used {', '.join(gone)}, which has lost its role or has a newer version." if gone else ""
    else:
        note = "The gate decides whether the run may be promoted, not these intervals."
    title = f"{named(metric).capitalize()} by slice, largest fall first"
    table = blocks.changes(title, (f"old: {run_name(old)}", f"new: {run_name(run.id)}"), rows, note)
    report([[_verdict(gate)] if gate is not None else [_no_gate(run, old)], [table]], key=f"changes-{run.id}")
    if chosen is not None:
        _galleries(chosen, run)


def _first(changes: list[SliceChange], verdicts: dict[str, Any]) -> SliceChange | None:
    """The slice whose images are shown first: one that blocks, else the largest fall with changed images."""
    blocking = [change for change in changes if verdicts.get(change.slice, {}).get("blocks")]
    changed = [change for change in changes if change.newly_wrong or change.newly_right]
    return next(iter([*blocking, *changed]), None)


def _verdict(gate: model_record.Row) -> Block:
    n = len(gate["slices"])
    counts = {outcome: sum(part["outcome"] == outcome for part in gate["slices"]) for outcome in SIGNS}
    parts = [f"{count} {outcome}" for outcome, count in counts.items() if count]
    if gate["blocks"]:
        head = f"{gate['outcome'].capitalize()}: it must not replace {run_name(gate['baseline'])}"
    elif gate["outcome"] == "passed":
        head = f"Passed: it may replace {run_name(gate['baseline'])}"
    else:
        head = f"{gate['outcome'].capitalize()}, but no slice blocks: it may replace {run_name(gate['baseline'])}"
    policy = gate["policy"]
    note = (
        f"{n} {'slice' if n == 1 else 'slices'}: {', '.join(parts)}. Accepted fall: {policy['margin']:g}. "
        f"Gate {gate['id']}, {when(gate['at'])} UTC."
    )
    return blocks.verdict(gate["outcome"], SIGNS[gate["outcome"]], head, note, gate["blocks"])


def _no_gate(run: Run, old: str) -> Block:
    note = "Run “Gate …” above to decide whether it may replace that run."
    return blocks.verdict("undecided", "·", f"No gate verdict against {run_name(old)} yet", note, False)


def _row(change: SliceChange, verdict: dict[str, Any] | None, run: Run, chosen: SliceChange | None) -> Block:
    small = [ROLES.get(change.role or "", ROLES[""])]
    if verdict is not None and verdict["standing"] != "judged":
        small.append(verdict["standing"])
    if verdict is not None and verdict["blocks"]:
        small.append("blocks")
    gain, low, high = (None if end is None else -end for end in (change.fall, change.high, change.low))
    interval = "" if low is None or high is None else f"{signed(low)} to {signed(high)}"
    fell = change.low is not None and change.low > 0
    sentence = ""
    if verdict is not None:
        sentence = verdict["sentence"].removeprefix(f"{change.slice}: ").replace("->", "→")
        sentence = f"{sentence[:1].upper()}{sentence[1:]}."
    return blocks.change(
        link(change.slice, "models", run=run.id, cut=change.slice, old=session.param("old") or None,
             by=session.param("by") or None),
        ", ".join(small),
        None if verdict is None else (verdict["outcome"], SIGNS[verdict["outcome"]]),
        count(change.n),
        (change.old.value, change.old.low, change.old.high),
        (change.new.value, change.new.low, change.new.high),
        (signed(gain), interval, fell or (verdict is not None and verdict["outcome"] == "failed")),
        (_changed(change, "wrong", run), _changed(change, "right", run)),
        sentence,
        verdict is not None and verdict["blocks"],
        chosen is change,
    )  # fmt: skip


def _changed(change: SliceChange, side: str, run: Run) -> Any:
    image_ids = change.newly_wrong if side == "wrong" else change.newly_right
    if not image_ids:
        return "0"
    old, by = session.param("old") or None, session.param("by") or None
    return link(count(len(image_ids)), "models", run=run.id, cut=change.slice, side=side, old=old, by=by)


def _galleries(change: SliceChange, run: Run) -> None:
    by_side = {"wrong": change.newly_wrong, "right": change.newly_right}
    side = session.param("side")
    side = side if side in SIDES else "wrong" if change.newly_wrong else "right"
    with st.container(horizontal=True, vertical_alignment="center", key="gallery"):
        st.markdown(f"**{escape(change.slice)}**", width="content")
        titles = {name: f"{title} {len(by_side[name]):,}" for name, title in SIDES.items()}
        session.switch("side", titles, side, key=f"side-{run.id}", label="Images")
    image_ids = by_side[side]
    if not image_ids:
        st.caption(f"No image of {escape(change.slice)} is {SIDES[side].lower()}.")
        return
    rows = model_record.predictions(run.id, image_ids[:MOST_SHOWN])
    title = f"{SIDES[side]}: {images(len(image_ids))}, as predicted by run {run.id}"
    image_grid(rows, "confidence", title, key=f"changed-{side}")
