"""All models, and one of them: what is in production, its runs, what happened to its versions, what it forgot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from lake.errors import BadInput
from search_app.ui import session
from search_app.ui.components.report import Align, Block, alarm, link, report, table
from search_app.ui.components.report.tables import cell, heat
from search_app.ui.data import model_record
from search_app.ui.pages.models import releases
from search_app.ui.pages.models.wording import STATUS, decimals, named, outcome, span_of, when
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count

if TYPE_CHECKING:
    from training.registry.runs import Run
    from training.registry.versions import Version

MOST_RUNS = 100
MOST_COLUMNS = 12  # runs that a forgetting table shows, the newest


def every() -> None:
    """The models of the lake."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("A run makes a model. It may be **promoted** when the gate finds it worse nowhere that counts.")
        st.space("stretch")
        train_button()
    known, versions = model_record.runs(), model_record.versions()
    report([[_models(known, versions)], [_runs(known, versions, of_one=False)]], key="models")


def one(name: str) -> None:
    """The model of that name."""
    known = [run for run in model_record.runs() if run.model == name]
    versions = [one for one in model_record.versions() if one.model == name]
    there = next((one for one in versions if one.status == "promoted"), None)
    with st.container(horizontal=True, vertical_alignment="center", key="model-actions"):
        if st.button("All models", type="tertiary"):
            leave()
        st.markdown(f"› **{escape(name)}**", width="content")
        said = f"version {there.version} is promoted" if there else "no version is promoted"
        st.caption(said, width="content")
        st.space("stretch")
        if there is not None:
            releases.rollback_button(name, there)
        train_button(of=name)
    blocks: list[list[Block | None]] = [
        [_runs(known, versions, of_one=True)],
        [_forgetting(name, versions)],
        [_history(name)],
    ]
    report(blocks, key=f"model-{name}")


def train_button(of: str = "", centred: bool = False) -> None:
    """Leads to the form; who may only read is told whom to ask."""
    may = session.may("admin")
    help = "On slices of this lake" if may else NEEDS_ADMIN
    with st.container(horizontal_alignment="center" if centred else "right", width="stretch" if centred else "content"):
        if st.button("Train a model", type="primary", disabled=not may, help=help):
            session.put(make="1", of=of or None, run=None, tab=None, cut=None, open=None, sel=None)
            st.rerun()


NEEDS_ADMIN = "Your key may read only: training, judging and releasing models needs one with the scope admin"


def back() -> None:
    """The way out of a page that has nothing to show."""
    with st.container(horizontal_alignment="center"):
        if st.button("All models"):
            leave()


def leave() -> None:
    """To the list of models."""
    session.put(**dict.fromkeys(("make", "of", "run", "tab", "cut", "old", "by", "side", "open", "sel")))
    st.rerun()


# ------------------------------------------------------------------------------------------------------------------


def _models(known: Sequence[Run], versions: Sequence[Version]) -> Block:
    rows = []
    for name in dict.fromkeys(run.model for run in known):
        mine = [run for run in known if run.model == name]
        own = [one for one in versions if one.model == name]
        present = next((one for one in own if one.status == "promoted"), None)
        shadows = ", ".join(f"{one.version}" for one in own if one.status == "shadow")
        rows.append(
            [
                link(name, "models", of=name),
                mine[0].task,
                link(f"version {present.version}", "models", run=present.run) if present else "none",
                when(present.changed_at) if present else "–",
                f"version {shadows}" if shadows else "–",
                count(len(own)),
                count(len(mine)),
            ]
        )
    columns: list[tuple[str, Align, str]] = [
        ("Model", "left", ""),
        ("Task", "left", ""),
        ("Promoted", "left", "The version that answers in production"),
        ("Since", "left", ""),
        ("Shadow", "left", "Versions that answer beside it, unseen by users"),
        ("Versions", "right", "Runs that were registered"),
        ("Runs", "right", "Trainings, whatever became of them"),
    ]
    return table("Models", columns, rows)


def _runs(known: Sequence[Run], versions: Sequence[Version], of_one: bool) -> Block:
    by_run = {one.run: one for one in versions}
    gates: dict[str, model_record.Row] = {}
    for row in model_record.verdicts():
        gates.setdefault(row["candidate"], row)
    rows = []
    for run in known[:MOST_RUNS]:
        version, gate = by_run.get(run.id), gates.get(run.id)
        trained = ", ".join(one["id"] for one in run.data.get("slices", []) if one["use"] == "train")
        state = STATUS[run.status]
        rows.append(
            [
                link(run.id, "models", run=run.id),
                *([] if of_one else [run.model]),
                f"{version.version} · {STATUS[version.status]}" if version else "–",
                alarm(state) if run.status == "failed" else state,
                what(run),
                trained if len(trained) <= 44 else trained[:43] + "…",
                decimals(held_out(run)),
                "–" if gate is None else outcome(gate["outcome"], gate["blocks"], gate["baseline"]),
                when(run.started_at),
                span_of(run.started_at, run.ended_at),
            ]
        )
    of_model: tuple[str, Align, str] = ("Model", "left", "")
    columns: list[tuple[str, Align, str]] = [
        ("Run", "left", "One training; the newest first"),
        *([] if of_one else [of_model]),
        ("Version", "left", "What was registered of it, and what it is used for"),
        ("State", "left", ""),
        ("Made of", "left", "A probe on stored vectors, or a network that was fine-tuned"),
        ("Trained on", "left", ""),
        ("Held out", "right", "Its first metric on its own validation images: for choosing, not for judging"),
        ("Newest gate", "left", "✓ passed, ✗ failed, ? undecided, and against which run"),
        ("Begun", "left", ""),
        ("Took", "right", ""),
    ]
    more = f", the newest {MOST_RUNS}" if len(known) > MOST_RUNS else ""
    return table(f"Runs{more}", columns, rows)


def what(run: Run) -> str:
    """What a run made, in a word or two."""
    if run.kind == "probe":
        return f"probe on {run.settings.get('embedder') or 'vectors'}"
    return str(run.settings.get("architecture") or run.kind)


def held_out(run: Run) -> float | None:
    """The metric that says most of its task, on the run's validation images."""
    found: dict[str, Any] = run.data.get("result", {}).get("validation", {})
    return next((found[name] for name in ("balanced_accuracy", "miou", "map_50") if name in found), None)


def _forgetting(name: str, versions: Sequence[Version]) -> Block | None:
    try:
        found = model_record.forgetting(name)
    except BadInput:  # nothing of it was evaluated yet, which the runs say
        return None
    first = max(0, len(found.runs) - MOST_COLUMNS)
    by_run = {one.run: f"v{one.version}" for one in versions}
    heads = [by_run.get(run, run) for run in found.runs[first:]]
    rows = []
    for slice, values in found.values.items():
        best: float | None = None
        cells: list[Block | None] = []
        for value in values:
            best = value if best is None or (value is not None and value > best) else best
            lost = 0.0 if value is None or best is None else best - value
            cells.append(None if value is None else cell(decimals(value), share=min(1.0, 4 * lost)))
        lost_now = found.forgotten[slice]
        last = None if lost_now is None else cell(decimals(lost_now), share=min(1.0, 4 * lost_now))
        rows.append((slice, [*cells[first:], last]))
    note = (
        f"{named(found.metric).capitalize()} of every evaluated run, the oldest first. Tinted where an older run was "
        "better; the last column is the best so far less the newest."
    )
    return heat("What it forgot", "slice", [*heads, "forgotten"], rows, note)


def _history(name: str) -> Block | None:
    entries = model_record.history(name)
    if not entries:
        return None
    rows = [
        [
            when(one.timestamp),
            link(f"version {one.version}", "models", run=one.run),
            STATUS[one.action],
            one.gate or "–",
            _reason(one.reason),
        ]
        for one in entries
    ]
    columns: list[tuple[str, Align, str]] = [
        ("When", "left", ""),
        ("What", "left", ""),
        ("Became", "left", ""),
        ("Gate", "left", "The verdict it rests on"),
        ("Reason", "left", ""),
    ]
    return table("What happened to its versions", columns, rows)


def _reason(said: str | None) -> str | Block:
    """Why; against a gate stands out."""
    return alarm(said) if said is not None and said.startswith("forced:") else said or "–"
