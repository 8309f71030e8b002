"""What is in production: promote, roll back, shadow, retire. The registry decides; a refusal is shown in its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.data import model_record
from search_app.ui.pages.models.wording import SIGNS
from search_app.ui.text.markdown import escape

if TYPE_CHECKING:
    from training.registry.runs import Run
    from training.registry.versions import Version

NEEDS_ADMIN = "Your key may read only: this needs one with the scope admin"


def buttons(run: Run, version: Version | None) -> None:
    """What can be done with a finished run."""
    may, status = session.may("admin"), version.status if version else None
    help = None if may else NEEDS_ADMIN
    if status == "promoted":
        rollback_button(run.model, version)
        return
    # Loud only where the gate lets it pass; it can be asked for at any time, and is refused in words.
    loud: Literal["primary", "secondary"] = "primary" if _lets_pass(run) else "secondary"
    if st.button("Promote …", type=loud, disabled=not may, help=help, key="promote"):
        _promote(run, version)
    with st.popover("More", disabled=not may, help=help, key="more"):
        if status != "shadow":
            st.caption("A shadow answers beside the promoted version. Its answers are kept apart and shown to nobody.")
            if st.button("Run as shadow", key="shadow"):
                _change("models shadow", run, lambda: _promotion().shadow(session.lake(), run.id))
        if version is None:
            if st.button("Register as a version", key="register"):
                _change("models register", run, lambda: _promotion().register(session.lake(), run.id))
        elif status == "retired":
            if st.button("Take back into use", key="register"):
                _change("models register", run, lambda: _promotion().register(session.lake(), run.id))
        elif st.button("Retire", key="retire", help="Takes it out of use; nothing is deleted"):
            _change("models retire", run, lambda: _promotion().retire(session.lake(), run.id))


def rollback_button(model: str, present: Version | None) -> None:
    """Leads to the question whether the promoted version is to be taken back."""
    may = session.may("admin")
    if st.button("Roll back …", disabled=not may, help=None if may else NEEDS_ADMIN, key="rollback"):
        _rollback(model, present)


def _promoted(model: str) -> Version | None:
    found = model_record.versions()
    return next((one for one in found if one.model == model and one.status == "promoted"), None)


def _lets_pass(run: Run) -> bool:
    present = _promoted(run.model)
    gate = None if present is None else model_record.verdict(run.id, present.run)
    return gate is not None and not gate["blocks"]


@st.dialog("Promote")
def _promote(run: Run, version: Version | None) -> None:
    present = _promoted(run.model)
    this = f"version {version.version}" if version else f"run {run.id}"
    if present is None:
        st.markdown(f"No version of **{escape(run.model)}** is promoted: {this} will be the first, and needs no gate.")
    else:
        st.markdown(
            f"**{this.capitalize()}** will answer in place of **version {present.version}** of {escape(run.model)}."
        )
        gate = model_record.verdict(run.id, present.run)
        if gate is None:
            st.markdown("It was not judged against that version yet.")
        else:
            may = "must not replace it" if gate["blocks"] else "may replace it"
            st.markdown(f"{SIGNS[gate['outcome']]} Gate {gate['id']}: {gate['outcome']}; it {may}.")
    reason = st.text_input("Reason", placeholder="Kept with the release", key="promote-reason")
    with st.container(horizontal=True):
        if st.button("Promote", type="primary", key="promote-now"):
            _try(run, reason, force=False)
        if st.session_state.get("_refused") == run.id and st.button(
            "Promote all the same", key="promote-anyway", disabled=not reason.strip(), help="Needs a reason"
        ):
            _try(run, reason, force=True)
    if st.session_state.get("_refused") == run.id:
        st.error(escape(st.session_state["_refusal"]))
        st.caption("It can be promoted all the same, with a reason. Both are kept on the record, and on the card.")


def _try(run: Run, reason: str, force: bool) -> None:
    try:
        made = _promotion().promote(session.lake(), run.id, reason=reason.strip() or None, force=force)
    except LakeloopError as error:
        # What the command line offers, the button beside it does.
        said = str(error).removesuffix(" To promote it anyway: --force --reason WHY")
        st.session_state["_refused"], st.session_state["_refusal"] = run.id, said[:1].upper() + said[1:]
        st.rerun(scope="fragment")
    else:
        session.wrote("models promote", made.id, {"run": run.id, "gate": made.gate, "reason": made.reason})
        session.say(f"{escape(made.id)} is promoted.")
        st.session_state.pop("_refused", None)
        st.rerun()


@st.dialog("Roll back")
def _rollback(model: str, present: Version | None) -> None:
    named = f"version {present.version}" if present else "the promoted version"
    st.markdown(f"Take back **{named}** of {escape(model)}? The one that was promoted before it answers again.")
    reason = st.text_input("Reason", placeholder="What went wrong", key="rollback-reason")
    if st.button("Roll back", type="primary", key="rollback-now"):
        try:
            made = _promotion().rollback(session.lake(), model, reason.strip() or None)
        except LakeloopError as error:
            st.error(escape(str(error)))
        else:
            session.wrote("models rollback", made.id, {"reason": reason.strip() or None})
            session.say(f"{escape(made.id)} is promoted again.")
            st.rerun()


def _change(action: str, run: Run, do: Callable[[], Version]) -> None:
    try:
        made = do()
    except LakeloopError as error:
        st.toast(escape(str(error)), duration="long")
    else:
        session.wrote(action, made.id, {"run": run.id})
        session.say(f"{escape(made.id)} is {made.status} now.")
        st.rerun()


def _promotion() -> Any:
    from training.registry import promotion

    return promotion
