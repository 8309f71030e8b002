"""Views of a slice's contents: images, classes, changes, near-duplicates and leaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from lake import slices
from lake.slices import Slice
from search_app.ui import session
from search_app.ui.components import empty_states
from search_app.ui.components.grid import image_grid
from search_app.ui.components.report import Align, alarm, card, cards, link, report, table
from search_app.ui.data import queries
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images, share

if TYPE_CHECKING:
    from embeddings.duplicates.duplicates import Duplicates

MOST_SHOWN = 2_000
GROUPS_SHOWN = 60


def image_list(image_ids: Sequence[str]) -> None:
    """The images."""
    rows = queries.predictions_of(image_ids[:MOST_SHOWN])
    if not rows:
        return empty_states.empty(
            "This slice is empty now", "No image of the lake matches its definition, or all its images were erased."
        )
    more = f", the first {MOST_SHOWN:,} shown" if len(image_ids) > MOST_SHOWN else ""
    return image_grid(rows, "confidence", f"{images(len(image_ids))}{more}", key="members")


def class_table(classes: Sequence[dict[str, Any]]) -> None:
    """Images and share of each class (`label` None: without a label)."""
    total = sum(row["images"] for row in classes)
    rows = [
        [
            row["label"] if row["label"] is not None else alarm("no label"),
            count(row["images"]),
            share(row["images"] / total),
        ]
        for row in classes
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Class", "left", "By the labels that the slice was saved with"),
        ("Images", "right", ""),
        ("Share", "right", ""),
    ]
    report([[table("Classes", columns, rows), None]], key="classes")


def changes(slice_: Slice) -> None:
    """What changed from another version or slice to this one."""
    others = [other for other in slices.list(session.lake()) if other.id != slice_.id]
    if not others:
        return empty_states.empty("No other slice to compare with", "Save another version or another slice first.")
    same_name = [other for other in others if other.name == slice_.name]
    earlier = [other for other in same_name if other.version < slice_.version]
    default = (earlier or same_name or others)[0]
    before = next((other for other in others if other.id == session.param("versus")), default)
    ordered = [*same_name, *(other for other in others if other.name != slice_.name)]
    chosen = st.selectbox("Compared with", [other.id for other in ordered], index=ordered.index(before), width=320)
    if chosen != before.id:
        session.put(versus=chosen, open=None, sel=None)
        st.rerun()
    diff = slices.diff(session.lake(), before, slice_)
    changed = "not known" if diff.labels_changed is None else count(len(diff.labels_changed))
    st.markdown(
        f"From {escape(diff.before)} to {escape(diff.after)}: "
        f"**{count(len(diff.added))} added**, "
        f"**{count(len(diff.removed))} removed**, {count(diff.kept)} in both; labels changed: {changed}"
        + (f"; {count(diff.erased)} erased." if diff.erased else ".")
    )
    left, right = st.columns(2, gap="medium")
    for column, title, image_ids in ((left, "Added", diff.added), (right, "Removed", diff.removed)):
        with column:
            if image_ids:
                rows = queries.predictions_of(image_ids[:MOST_SHOWN])
                image_grid(rows, "confidence", f"{title}: {images(len(image_ids))}", key=title.lower())
            else:
                st.markdown(f"**{title}**: none")
    if diff.labels_changed:
        rows = queries.predictions_of(diff.labels_changed[:MOST_SHOWN])
        image_grid(rows, "confidence", f"Labels changed: {images(len(diff.labels_changed))}", key="relabelled")
    return None


def duplicates_of(image_ids: Sequence[str]) -> Duplicates | None:
    """The near-duplicates among these images, by the first embedder that has vectors; None if there is none."""
    return _duplicates(queries.stamp(), tuple(image_ids))


# Not cache_data, which copies: the result is never changed, and its pairs may be many.
@st.cache_resource(max_entries=8, show_spinner=False)
def _duplicates(stamp: queries.Stamp, image_ids: tuple[str, ...]) -> Duplicates | None:
    from embeddings.duplicates import duplicates

    embedders = [embedder for embedder in session.lake().embedders() if embedder.dim is not None]
    return duplicates.find(session.lake(), image_ids, embedder=embedders[0].name) if embedders else None


def near_duplicates(image_ids: Sequence[str]) -> None:
    """Groups of near-duplicates."""
    with st.spinner("Comparing the images …", show_time=True):
        duplicates = duplicates_of(image_ids)
    if duplicates is None:
        return empty_states.not_embedded()
    groups, missing = duplicates.groups, duplicates.without_vector
    st.markdown(
        f"{count(len(groups))} groups of images that show the same view; {images(duplicates.redundant)} are redundant. "
        f"Pairs with a cosine similarity of at least {duplicates.threshold:g} were aligned and compared pixel by pixel."
        + (f" {images(missing)} could not be compared: no vector." if missing else "")
    )
    group_cards = [
        card(link(images(len(group)), "search", like=group[0]), "", "", [], group[:6])
        for group in groups[:GROUPS_SHOWN]
    ]
    report([[cards("Near-duplicates", "", group_cards, "No two images show the same view.")]], key="near")
    return None


def leak_check(slice_: Slice, image_ids: Sequence[str]) -> None:
    """Images that slices of the opposite role have, or near-duplicates of which they have."""
    from embeddings.duplicates import leak_guard

    if slice_.role is None:
        return empty_states.empty(
            "This slice has no role", "Choose a role above. Training images must not be in evaluation slices."
        )
    with st.spinner("Comparing the images …", show_time=True):
        leaking = leak_guard.check(session.lake(), image_ids, slice_.role, apart_from=slice_.name)
    if not leaking.against:
        kind = "evaluation or regression" if slice_.role == "train" else "training"
        return empty_states.empty("Nothing to compare with", f"The lake has no {kind} slice yet.")
    if not leaking.images:
        others = ", ".join(escape(name) for name in leaking.against)
        st.success(f"None of its images, and no near-duplicate of them, is in {others}.")
    else:
        st.error(escape(leaking.words()) + ".")
        rows = queries.predictions_of(leaking.images[:MOST_SHOWN])
        image_grid(rows, "confidence", images(len(leaking.images)), key="leaking")
    if leaking.uncompared:
        st.caption(f"{images(leaking.uncompared)} could be compared by identity only: no vector.")
    return None
