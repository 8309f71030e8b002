"""Buttons and dialogs that promote, roll back, shadow and retire versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.data import model_record
from search_app.ui.pages.models.wording import SIGNS, standing
from search_app.ui.text.markdown import escape

if TYPE_CHECKING:
    from lake.storage.store import Lake
    from training.registry.runs import Run
    from training.registry.versions import Version

SHARES = (1, 5, 10, 25, 50, 100)  # percent
NEEDS_ADMIN = "Your key can only read. This needs a key with the scope admin"


def buttons(run: Run, version: Version | None) -> None:
    """The buttons for a finished run."""
    may, status = session.may("admin"), version.status if version else None
    help = None if may else NEEDS_ADMIN
    if status == "promoted":
        rollback_button(run.model, version)
        return
    # Highlighted only if the gate allows it. Otherwise the registry refuses with a message.
    style: Literal["primary", "secondary"] = "primary" if _gate_allows(run) else "secondary"
    if st.button("Promote …", type=style, disabled=not may, help=help, key="promote"):
        _promote(run, version)
    if status == "canary":
        rollback_button(run.model, version)
    with st.popover("More", disabled=not may, help=help, key="more"):
        if status != "shadow":
            st.caption("A shadow predicts the same images as the promoted version. Its predictions are stored apart.")
            if st.button("Run as shadow", key="shadow"):
                _shadow(run)
        if version is None:
            if st.button("Register as a version", key="register"):
                _register(run)
        elif status == "retired":
            if st.button("Use again", key="register"):
                _register(run)
        elif st.button("Retire", key="retire", help="Takes it out of use. Nothing is deleted"):
            _retire(run)


def rollback_button(model: str, current: Version | None) -> None:
    """The button that opens the dialog Roll back."""
    may = session.may("admin")
    if st.button("Roll back …", disabled=not may, help=None if may else NEEDS_ADMIN, key="rollback"):
        _rollback(model, current)


def _promoted(model: str) -> Version | None:
    return next((v for v in model_record.versions() if v.model == model and v.status == "promoted"), None)


def _gate_allows(run: Run) -> bool:
    current = _promoted(run.model)
    gate = None if current is None else model_record.verdict(run.id, current.run)
    return gate is not None and not gate["blocks"]


@st.dialog("Promote")
def _promote(run: Run, version: Version | None) -> None:
    current = _promoted(run.model)
    subject = f"version {version.version}" if version else f"run {run.id}"
    if current is None:
        st.markdown(f"No version of **{escape(run.model)}** is promoted. The first version, {subject}, needs no gate.")
    else:
        st.markdown(f"**{subject.capitalize()}** will replace **version {current.version}** of {escape(run.model)}.")
        gate = model_record.verdict(run.id, current.run)
        if gate is None:
            st.markdown("There is no gate verdict against that version yet.")
        else:
            permission = "must not replace it" if gate["blocks"] else "may replace it"
            st.markdown(f"{SIGNS[gate['outcome']]} Gate {gate['id']}: {gate['outcome']}; it {permission}.")
    reason = st.text_input("Reason", placeholder="Recorded with the release", key="promote-reason")
    share = None if current is None else _share()
    with st.container(horizontal=True):
        if st.button("Promote", type="primary", key="promote-now"):
            _promote_now(run, reason, share, force=False)
        if st.session_state.get("_refused") == run.id and st.button(
            "Promote anyway", key="promote-anyway", disabled=not reason.strip(), help="Needs a reason"
        ):
            _promote_now(run, reason, share, force=True)
    if st.session_state.get("_refused") == run.id:
        st.error(escape(st.session_state["_refusal"]))
        st.caption("You can promote it anyway with a reason. The reason is recorded and shown on the model card.")


def _share() -> float | None:
    """The chosen share of the images for a canary; None for all of them."""
    percent: int = st.select_slider(
        "Share of the images", SHARES, SHARES[-1], format_func=lambda percent: f"{percent} %", key="promote-share"
    )
    if percent == SHARES[-1]:
        return None
    st.caption(
        "A canary: the other images go to the promoted version. The server compares both, and rolls the canary back "
        "when it disagrees too often, is too slow or fails."
    )
    return percent / 100


@session.handler("models promote")
def _promote_now(run: Run, reason: str, share: float | None, force: bool) -> None:
    try:
        promote = _promotion().promote
        version = promote(session.lake(), run.id, reason=reason.strip() or None, force=force, share=share)
    except LakeloopError as error:
        # The button beside the message replaces the command.
        message = str(error).removesuffix(" To promote it anyway: --force --reason WHY")
        st.session_state["_refused"], st.session_state["_refusal"] = run.id, message[:1].upper() + message[1:]
        st.rerun(scope="fragment")
    else:
        detail = {"run": run.id, "gate": version.gate, "reason": version.reason, "share": share}
        session.wrote(version.id, detail)
        session.say(f"{escape(version.id)} is now {standing(version.status, share)}.")
        st.session_state.pop("_refused", None)
        st.rerun()


@st.dialog("Roll back")
def _rollback(model: str, current: Version | None) -> None:
    name = f"version {current.version}" if current else "the promoted version"
    canary = next((v for v in model_record.versions() if v.model == model and v.status == "canary"), None)
    if canary is not None:
        name, after = f"version {canary.version}", "It is a canary: the promoted version predicts every image again."
    else:
        after = "The version promoted before it goes into production again."
    st.markdown(f"Roll back **{name}** of {escape(model)}? {after}")
    reason = st.text_input("Reason", placeholder="What went wrong", key="rollback-reason")
    if st.button("Roll back", type="primary", key="rollback-now"):
        _roll_back(model, reason.strip() or None)


@session.handler("models rollback")
def _roll_back(model: str, reason: str | None) -> None:
    try:
        version = _promotion().rollback(session.lake(), model, reason)
    except LakeloopError as error:
        st.error(escape(str(error)))
    else:
        session.wrote(version.id, {"reason": reason})
        session.say(f"{escape(version.id)} is promoted again.")
        st.rerun()


@session.handler("models register")
def _register(run: Run) -> None:
    _change(run, _promotion().register)


@session.handler("models shadow")
def _shadow(run: Run) -> None:
    _change(run, _promotion().shadow)


@session.handler("models retire")
def _retire(run: Run) -> None:
    _change(run, _promotion().retire)


def _change(run: Run, do: Callable[[Lake, str], Version]) -> None:
    try:
        version = do(session.lake(), run.id)
    except LakeloopError as error:
        st.toast(escape(str(error)), duration="long")
    else:
        session.wrote(version.id, {"run": run.id})
        session.say(f"{escape(version.id)} is now {version.status}.")
        st.rerun()


def _promotion() -> Any:
    from training.registry import promotion

    return promotion
