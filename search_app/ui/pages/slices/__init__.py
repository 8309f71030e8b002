"""Slices page: the list of slices, and one slice with its contents, changes, leaks and export."""

from __future__ import annotations

import streamlit as st

from lake import slices
from lake.errors import BadInput
from lake.slices import Slice
from search_app.ui import session
from search_app.ui.components import empty_states
from search_app.ui.data import queries
from search_app.ui.pages.slices import contents, export, header, slice_list
from search_app.ui.text.markdown import escape

VIEWS = {
    "images": "Images",
    "classes": "Classes",
    "changes": "Changes",
    "duplicates": "Near-duplicates",
    "leaks": "Leak check",
    "definition": "Definition and export",
}


def page() -> None:
    """The Slices page."""
    if not queries.status(queries.stamp())["images"]:
        return empty_states.no_images()
    name = session.param("set")
    if not name:
        return slice_list.show()
    try:
        slice_ = slices.get(session.lake(), name)
    except BadInput as error:
        empty_states.empty("Slice not found", escape(str(error)))
        with st.container(horizontal_alignment="center"):
            if st.button("All slices"):
                header.leave()
        return None
    return _slice(slice_)


def _slice(slice_: Slice) -> None:
    lake = session.lake()
    erased = slices.erased_count(lake, slice_)
    try:
        table = slices.contents(lake, slice_)
    except BadInput as error:  # the definition of a live slice is no longer valid
        table = None
        st.error(escape(str(error)))
    image_ids: list[str] = [] if table is None else table["image_id"].to_pylist()
    header.show(slice_, len(image_ids), erased)
    view = session.param("show") if session.param("show") in VIEWS else "images"
    chosen = st.segmented_control(
        "View", list(VIEWS), default=view, format_func=VIEWS.__getitem__, label_visibility="collapsed", required=True
    )
    if chosen != view:
        session.put(show=None if chosen == "images" else chosen, open=None, sel=None, versus=None)
        st.rerun()
    if view == "definition":
        return export.show(slice_)
    if table is None:
        return None
    match view:
        case "classes":
            contents.class_table(slices.balance(lake, table))
            if table["label_events"].null_count:
                st.caption("This slice was saved before slices recorded their labels. These are the current labels.")
        case "changes":
            contents.changes(slice_)
        case "duplicates":
            contents.near_duplicates(image_ids)
        case "leaks":
            contents.leak_check(slice_, image_ids)
        case _:
            contents.image_list(image_ids)
    return None
