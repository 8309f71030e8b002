"""The list of slices, and the form that makes a slice from the filters."""

from __future__ import annotations

from typing import Any

import streamlit as st

from lake import slices
from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.components.grid import save_slice
from search_app.ui.components.report import Align, link, report, table
from search_app.ui.data import queries
from search_app.ui.pages.slices.contents import class_table, duplicates_of
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images
from search_app.ui.text.roles import ROLES

LONGEST_DEFINITION = 70


def show() -> None:
    """The list."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("A slice is a **named, versioned set of images** with its definition.")
        st.space("stretch")
        _new_slice()
    known = slices.list(session.lake())
    if not known:
        return empty_states.empty(
            "No slices yet",
            "Select images on any page and press **L**, or save the images that pass the filters above.",
            for_this_lake("slice", "create", "NAME", "--where", "SQL"),
        )
    versions: dict[str, int] = {}
    for slice_ in known:
        versions[slice_.name] = versions.get(slice_.name, 0) + 1
    rows = [
        [
            link(slice_.name, "slices", set=slice_.name),
            slice_.role or "–",
            "live" if slice_.live else count(slice_.size),
            count(versions[slice_.name]),
            shortened(f"{slice_.kind}: {slice_.definition}", LONGEST_DEFINITION),
            f"{slice_.created_at:%d %b %Y, %H:%M} UTC",
        ]
        for slice_ in slices.newest(session.lake())
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Slice", "left", "Leads to its newest version"),
        ("Role", "left", "What it is for. Training slices share no images with evaluation and regression slices"),
        ("Images", "right", "In the newest version; the images of a live slice are counted when you open it"),
        ("Versions", "right", "Versions that are not deleted"),
        ("Definition", "left", ""),
        ("Created", "left", ""),
    ]
    report([[table("Slices", columns, rows)]], key="slices")
    return None


def shortened(text: str, longest: int) -> str:
    """The text, cut to `longest` characters with an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _new_slice() -> None:
    where = scope.where()
    with st.popover("New slice from the filters", type="primary"), st.form("new-slice", border=False):
        st.caption(f"{images(queries.totals(where)['images'])} pass the filters above.")
        name = st.text_input("Name", placeholder="rainy-night")
        role = st.selectbox("Role", list(ROLES), format_func=ROLES.__getitem__)
        live = st.checkbox("Live", help="Save only the definition. Its images are looked up at every use")
        preview = st.form_submit_button("Preview")
        save = st.form_submit_button("Save", type="primary")
    if preview or save:
        definition: dict[str, Any] = {"where": where or "true", "role": role or None, "live": live}
        if save:
            save_slice(name.strip(), **definition)
        else:
            _preview(name.strip() or "unnamed", definition)


@st.dialog("Preview", width="large")
def _preview(name: str, definition: dict[str, Any]) -> None:
    from embeddings.duplicates import leak_guard

    try:
        draft = slices.draft(session.lake(), name, **definition)
        st.markdown(f"**{images(len(draft.members))}**")
        class_table(slices.balance(session.lake(), draft.resolved.contents))
        duplicates = duplicates_of(draft.members)
        if duplicates is None:
            st.caption("Near-duplicates are not known: no image has an embedding yet.")
        else:
            groups = count(len(duplicates.groups))
            st.markdown(f"{groups} groups of near-duplicates; {images(duplicates.redundant)} are redundant.")
        message = leak_guard.check(session.lake(), draft.members, draft.role, apart_from=name).words()
        if draft.role:
            (st.warning if message else st.success)(
                escape(message) or "It shares no images with slices of the opposite role."
            )
    except LakeloopError as error:
        st.error(escape(str(error)))
