"""The list of models, and one model: its promoted version, runs, forgetting table and release history."""

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
from search_app.ui.pages.models.wording import STATUS, decimals, named, outcome, span_of, standing, when
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count

if TYPE_CHECKING:
    from training.registry.runs import Run
    from training.registry.versions import Version

MOST_RUNS = 100
MOST_COLUMNS = 12  # the newest runs, in the forgetting table


def show_list() -> None:
    """The list of models."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("A run trains a model. You can **promote** it when the gate passes.")
        st.space("stretch")
        train_button()
    known, versions = model_record.runs(), model_record.versions()
    report([[_models(known, versions)], [_runs(known, versions, with_model=True)]], key="models")


def show_model(name: str) -> None:
    """One model."""
    known = [run for run in model_record.runs() if run.model == name]
    versions = [version for version in model_record.versions() if version.model == name]
    promoted = next((version for version in versions if version.status == "promoted"), None)
    with st.container(horizontal=True, vertical_alignment="center", key="model-actions"):
        if st.button("All models", type="tertiary"):
            leave()
        st.markdown(f"› **{escape(name)}**", width="content")
        text = f"version {promoted.version} is promoted" if promoted else "no version is promoted"
        text += "".join(f", version {v.version} is a {standing(v.status, v.share)}" for v in versions if v.share)
        st.caption(text, width="content")
        st.space("stretch")
        if promoted is not None:
            releases.rollback_button(name, promoted)
        train_button(of=name)
    for sentence in model_record.canary_measurements(name):
        st.caption(f"Measured of the canary by a server: {sentence}")
    blocks: list[list[Block | None]] = [
        [_runs(known, versions, with_model=False)],
        [_forgetting(name, versions)],
        [_history(name)],
    ]
    report(blocks, key=f"model-{name}")


def train_button(of: str = "", centred: bool = False) -> None:
    """The button that opens the training form. It is disabled for a key that can only read."""
    may = session.may("admin")
    help = "On slices of this lake" if may else NEEDS_ADMIN
    with st.container(horizontal_alignment="center" if centred else "right", width="stretch" if centred else "content"):
        if st.button("Train a model", type="primary", disabled=not may, help=help):
            session.put(make="1", of=of or None, run=None, tab=None, cut=None, open=None, sel=None)
            st.rerun()


NEEDS_ADMIN = "Your key can only read. To train, evaluate and release models, use a key with the scope admin"


def back() -> None:
    """A button to the list of models, for an empty page."""
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
        runs = [run for run in known if run.model == name]
        own = [version for version in versions if version.model == name]
        promoted = next((version for version in own if version.status == "promoted"), None)
        canary = ", ".join(f"version {v.version}, {100 * v.share:g}%" for v in own if v.share is not None)
        shadows = ", ".join(f"{version.version}" for version in own if version.status == "shadow")
        rows.append(
            [
                link(name, "models", of=name),
                runs[0].task,
                link(f"version {promoted.version}", "models", run=promoted.run) if promoted else "none",
                when(promoted.changed_at) if promoted else "–",
                canary or "–",
                f"version {shadows}" if shadows else "–",
                count(len(own)),
                count(len(runs)),
            ]
        )
    columns: list[tuple[str, Align, str]] = [
        ("Model", "left", ""),
        ("Task", "left", ""),
        ("Promoted", "left", "The version in production"),
        ("Since", "left", ""),
        ("Canary", "left", "A version that predicts a share of the images in place of the promoted one"),
        ("Shadow", "left", "Versions that predict beside it, without being used"),
        ("Versions", "right", "Registered runs"),
        ("Runs", "right", "Including failed and stopped runs"),
    ]
    return table("Models", columns, rows)


def _runs(known: Sequence[Run], versions: Sequence[Version], with_model: bool) -> Block:
    by_run = {version.run: version for version in versions}
    gates: dict[str, model_record.Row] = {}
    for row in model_record.verdicts():
        gates.setdefault(row["candidate"], row)
    rows = []
    for run in known[:MOST_RUNS]:
        version, gate = by_run.get(run.id), gates.get(run.id)
        trained = ", ".join(row["id"] for row in run.data.get("slices", []) if row["use"] == "train")
        state = STATUS[run.status]
        rows.append(
            [
                link(run.id, "models", run=run.id),
                *([run.model] if with_model else []),
                f"{version.version} · {standing(version.status, version.share)}" if version else "–",
                alarm(state) if run.status == "failed" else state,
                architecture(run),
                trained if len(trained) <= 44 else trained[:43] + "…",
                decimals(held_out(run)),
                "–" if gate is None else outcome(gate["outcome"], gate["blocks"], gate["baseline"]),
                when(run.started_at),
                span_of(run.started_at, run.ended_at),
            ]
        )
    of_model: tuple[str, Align, str] = ("Model", "left", "")
    columns: list[tuple[str, Align, str]] = [
        ("Run", "left", "Newest first"),
        *([of_model] if with_model else []),
        ("Version", "left", "The registered version and its status"),
        ("State", "left", ""),
        ("Architecture", "left", "A probe on stored vectors, or a fine-tuned network"),
        ("Trained on", "left", ""),
        ("Validation", "right", "Its main metric on its own validation images. Use it to compare epochs, not runs"),
        ("Newest gate", "left", "✓ passed, ✗ failed, ? undecided, and against which run"),
        ("Started", "left", ""),
        ("Duration", "right", ""),
    ]
    more = f", the newest {MOST_RUNS}" if len(known) > MOST_RUNS else ""
    return table(f"Runs{more}", columns, rows)


def architecture(run: Run) -> str:
    """`probe on EMBEDDER`, or the architecture of the network."""
    if run.kind == "probe":
        return f"probe on {run.settings.get('embedder') or 'vectors'}"
    return str(run.settings.get("architecture") or run.kind)


def held_out(run: Run) -> float | None:
    """The main metric of its task on the run's validation images."""
    metrics: dict[str, Any] = run.data.get("result", {}).get("validation", {})
    return next((metrics[name] for name in ("balanced_accuracy", "miou", "map_50") if name in metrics), None)


def _forgetting(name: str, versions: Sequence[Version]) -> Block | None:
    try:
        forgetting = model_record.forgetting(name)
    except BadInput:  # no run of it was evaluated yet; the table of runs shows that
        return None
    first = max(0, len(forgetting.runs) - MOST_COLUMNS)
    by_run = {version.run: f"v{version.version}" for version in versions}
    heads = [by_run.get(run, run) for run in forgetting.runs[first:]]
    rows = []
    for slice, values in forgetting.values.items():
        best: float | None = None
        cells: list[Block | None] = []
        for value in values:
            best = value if best is None or (value is not None and value > best) else best
            lost = 0.0 if value is None or best is None else best - value
            cells.append(None if value is None else cell(decimals(value), share=min(1.0, 4 * lost)))
        lost_now = forgetting.forgotten[slice]
        last = None if lost_now is None else cell(decimals(lost_now), share=min(1.0, 4 * lost_now))
        rows.append((slice, [*cells[first:], last]))
    note = (
        f"{named(forgetting.metric).capitalize()} of every evaluated run, oldest first. A cell is tinted if an older "
        "run was better. The last column is the best value so far minus the newest."
    )
    return heat("Forgetting", "slice", [*heads, "forgotten"], rows, note)


def _history(name: str) -> Block | None:
    events = model_record.history(name)
    if not events:
        return None
    rows = [
        [
            when(event.timestamp),
            link(f"version {event.version}", "models", run=event.run),
            standing(event.action, event.share),
            event.gate or "–",
            _reason(event.reason),
        ]
        for event in events
    ]
    columns: list[tuple[str, Align, str]] = [
        ("When (UTC)", "left", ""),
        ("Version", "left", ""),
        ("Event", "left", ""),
        ("Gate", "left", "The verdict that allowed it"),
        ("Reason", "left", ""),
    ]
    return table("Release history", columns, rows)


def _reason(reason: str | None) -> str | Block:
    """The reason; that of a promotion against the gate, or of an automatic roll back, is highlighted."""
    marked = reason is not None and reason.startswith(("forced:", "rolled back automatically:"))
    return alarm(reason) if marked and reason else reason or "–"
