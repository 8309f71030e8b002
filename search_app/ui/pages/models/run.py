"""One run: its header, its actions (evaluate, gate, resume, release), and its views."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.data import model_record
from search_app.ui.pages.models import card, changes, curves, model_list, provenance, releases, running_jobs
from search_app.ui.pages.models.wording import STATUS, span_of, when
from search_app.ui.text.markdown import escape

if TYPE_CHECKING:
    from training.registry.runs import Run
    from training.registry.versions import Version

VIEWS = {
    "slices": ("Slices", changes.show),
    "curves": ("Curves", curves.show),
    "origin": ("Data and recipe", provenance.show),
    "card": ("Card", card.show),
}
# Runs that continue from their checkpoint.
RESUMABLE = ("stopped", "failed")


def show(run: Run) -> None:
    """The page of a run."""
    version = next((version for version in model_record.versions() if version.run == run.id), None)
    _head(run, version)
    if run.status == "failed":
        st.error(escape(f"This run failed: {run.error or 'no reason was recorded'}"))
    default = "slices" if run.status == "done" else "curves"
    view = session.param("tab") if session.param("tab") in VIEWS else default
    session.switch("tab", {name: title for name, (title, _) in VIEWS.items()}, view, key=f"run-view-{run.id}")
    VIEWS[view][1](run)


def _head(run: Run, version: Version | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center", key="run-actions"):
        if st.button("All models", type="tertiary"):
            model_list.leave()
        st.markdown("›", width="content")
        if st.button(escape(run.model), type="tertiary", key="to-model"):
            session.put(of=run.model, run=None, tab=None, cut=None, old=None, by=None, side=None, open=None, sel=None)
            st.rerun()
        title = f"version {version.version}" if version else f"run {run.id}"
        st.markdown(f"› **{title}**", width="content")
        if version is not None:
            _state(STATUS[version.status], loud=version.status == "promoted")
        if run.status != "done":
            _state(STATUS[run.status], loud=run.status == "running")
        st.space("stretch")
        if run.status == "done":
            _evaluation_buttons(run)
            releases.buttons(run, version)
        elif run.status in RESUMABLE:
            _resume(run)
    facts = [
        model_list.architecture(run),
        run.task,
        f"run {run.id}" if version else "",
        f"from run {run.parent}" if run.parent else "",
        f"{when(run.started_at)} UTC",
        f"took {span_of(run.started_at, run.ended_at)}" if run.ended_at else "",
    ]
    st.caption(escape(" · ".join(fact for fact in facts if fact)))


def _state(text: str, loud: bool) -> None:
    if loud:
        st.badge(text, color="primary")
    else:
        st.caption(text, width="content")


def _evaluation_buttons(run: Run) -> None:
    """The buttons Evaluate and Gate."""
    may = session.may("admin")
    busy = running_jobs.busy(run.id)
    try:
        known = model_record.evaluated(run.id)
    except LakeloopError:  # there is no evaluation slice yet; the view below says so
        return
    help = "Predicts and measures all evaluation and regression slices" if may else model_list.NEEDS_ADMIN
    if (
        not known
        and st.button("Evaluate", type="primary", disabled=busy or not may, help=help, key="evaluate")
        and running_jobs.begin("evaluate", {"run": run.id})
    ):
        st.rerun()
    others = changes.others(run)
    if others and known:
        help = "Checks whether it became worse on any slice" if may else model_list.NEEDS_ADMIN
        if st.button("Gate …", disabled=busy or not may, help=help, key="gate"):
            _gate(run, others)


@st.dialog("Gate")
def _gate(run: Run, others: list[str]) -> None:
    st.caption(
        "Compares both runs on the same images. A slice on which the metric fell fails. A slice with too few images to "
        "tell is undecided; it blocks the promotion if the slice is protected. Regression slices are always protected."
    )
    with st.form(f"gate-{run.id}", border=False):
        chosen = changes.against(run, others)
        old = st.selectbox("Against", others, others.index(chosen), format_func=changes.run_name)
        margin = st.number_input("Margin: the largest fall that is accepted", 0.001, 1.0, 0.02, 0.005, format="%.3f")
        protected = st.multiselect("Also protected", changes.slice_names())
        if st.form_submit_button("Run the gate", type="primary"):
            policy = {"margin": margin, "protected": protected}
            arguments = {"candidate": run.id, "baseline": old, "policy": policy, "evaluate": True}
            if running_jobs.begin("gate", arguments):
                session.put(old=old, tab=None)
                st.rerun()


def _resume(run: Run) -> None:
    may = session.may("admin")
    help = "Continues from its newest checkpoint" if may else model_list.NEEDS_ADMIN
    if st.button(
        "Resume training", type="primary", disabled=running_jobs.busy(run.id) or not may, help=help, key="resume"
    ) and running_jobs.begin("train", {"resume": run.id}):
        st.rerun()
