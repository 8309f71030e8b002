"""The header of a slice: its versions, role and tags, and the buttons that freeze, tag and delete it."""

from __future__ import annotations

import streamlit as st

from lake import slices
from lake.errors import LakeloopError
from lake.slices import Slice
from search_app.ui import session
from search_app.ui.components import scope
from search_app.ui.pages.slices.slice_list import shortened
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images
from search_app.ui.text.roles import ROLES

LONGEST_DEFINITION = 160


def show(slice_: Slice, size: int, erased: int) -> None:
    """The header. `size`: images in the slice now; `erased`: images that were erased from the lake since."""
    with st.container(horizontal=True, vertical_alignment="center", key="slice-actions"):
        if st.button("All slices", type="tertiary"):
            leave()
        st.markdown(f"› **{escape(slice_.name)}**", width="content")
        _choose_version(slice_)
        _choose_role(slice_)
        text = images(size) + (f", {count(erased)} erased" if erased else "") + (" now" if slice_.live else "")
        st.caption(text, width="content")
        st.space("stretch")
        if slice_.live and st.button("Freeze", help="Save the images it has now as its next version"):
            _freeze(slice_)
        if not slice_.live and st.button("Use as scope", help="Show only this slice on every page"):
            session.go("search", slice=slice_.id)
        _tags(slice_)
        with st.popover("Delete", type="tertiary"):
            st.markdown(
                f"Delete **{escape(slice_.id)}**? Its images stay in the lake. Its version number is not used again."
            )
            if st.button("Delete this version", type="primary"):
                _delete(slice_)
    st.caption(escape(shortened(f"{slice_.kind}: {slice_.definition}", LONGEST_DEFINITION)))


def leave() -> None:
    """Back to the list of slices."""
    session.put(set=None, show=None, versus=None, open=None, sel=None)
    st.rerun()


def _choose_version(slice_: Slice) -> None:
    lake = session.lake()
    versions = [version.id for version in slices.list(lake) if version.name == slice_.name]
    tags = {f"{name}@{version}": tag for (name, tag), version in slices.tags(lake).items()}
    chosen = st.selectbox(
        "Version",
        versions,
        index=versions.index(slice_.id),
        format_func=lambda id: f"v{id.rpartition('@')[2]}" + (f" · {tags[id]}" if id in tags else ""),
        label_visibility="collapsed",
        width=150,
        key=f"version-{slice_.id}",
    )
    if chosen != slice_.id:
        session.put(set=chosen, open=None, sel=None, versus=None)
        st.rerun()


def _choose_role(slice_: Slice) -> None:
    role = st.selectbox(
        "Role",
        list(ROLES),
        index=list(ROLES).index(slice_.role or ""),
        format_func=ROLES.__getitem__,
        label_visibility="collapsed",
        width=170,
        disabled=not session.may("edit"),
        key=f"role-{slice_.id}-{slice_.role}",
    )
    if role != (slice_.role or ""):
        _set_role(slice_, role or None)


@session.handler("slice role")
def _set_role(slice_: Slice, role: str | None) -> None:
    from embeddings.duplicates import leak_guard

    try:
        _, leaking = leak_guard.assign(session.lake(), slice_, role)
    except LakeloopError as error:
        session.say(escape(str(error)))
    else:
        session.wrote(slice_.id, {"role": role})
        session.say(f"{escape(slice_.id)} is {ROLES[role or '']}. {escape(leaking.words())}")
    for key in [key for key in st.session_state if str(key).startswith(f"role-{slice_.id}-")]:
        del st.session_state[key]
    st.rerun()


@session.handler("slice create")
def _freeze(slice_: Slice) -> None:
    from embeddings.duplicates import leak_guard

    try:
        draft, leaking = leak_guard.guarded(session.lake(), slices.freeze(session.lake(), slice_))
        saved = slices.save(session.lake(), draft)
    except LakeloopError as error:
        st.toast(escape(str(error)), duration="long")
        return
    session.wrote(saved.id, {"kind": saved.kind, "definition": saved.definition})
    session.say(f"{escape(saved.id)} has {images(saved.size)}. {escape(leaking.words())}")
    session.put(set=saved.id)
    st.rerun()


def _tags(slice_: Slice) -> None:
    own = [
        tag
        for (name, tag), version in slices.tags(session.lake()).items()
        if (name, version) == (slice_.name, slice_.version)
    ]
    with st.popover(escape(", ".join(own)) if own else "Tags", type="tertiary"):
        with st.form(f"tag-{slice_.id}", border=False):
            tag = st.text_input("Tag", placeholder="gold", help=f"{slice_.name}@TAG then names this version")
            if st.form_submit_button("Tag this version"):
                _tag(slice_, tag.strip())
        for tag in own:
            if st.button(f"Remove {escape(tag)}", key=f"untag-{slice_.id}-{tag}"):
                _untag(slice_, tag)


@session.handler("slice tag")
def _tag(slice_: Slice, tag: str) -> None:
    try:
        slices.tag(session.lake(), slice_, tag)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return
    session.wrote(f"{slice_.name}@{tag}", {"version": slice_.version})
    st.rerun()


@session.handler("slice untag")
def _untag(slice_: Slice, tag: str) -> None:
    slices.untag(session.lake(), slice_.name, tag)
    session.wrote(f"{slice_.name}@{tag}", {})
    st.rerun()


@session.handler("slice delete")
def _delete(slice_: Slice) -> None:
    try:
        slices.delete(session.lake(), slice_)
    except LakeloopError as error:
        st.toast(escape(str(error)), duration="long")
        return
    session.wrote(slice_.id, {"size": slice_.size, "definition": slice_.definition})
    session.say(f"{escape(slice_.id)} is deleted. Its images stay in the lake.")
    has_versions = any(version.name == slice_.name for version in slices.list(session.lake()))
    was_scope = scope.current().slice == slice_.id
    session.put(set=slice_.name if has_versions else None, show=None, versus=None, open=None, sel=None)
    if was_scope:
        session.put(slice=None)
    st.rerun()
