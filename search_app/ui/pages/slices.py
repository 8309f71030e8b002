"""Slices, "What is in the set?": its definition, versions and classes, what is there twice, and what leaks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import streamlit as st

from lake import slices
from lake.errors import BadInput, LakeloopError
from lake.slices import Slice, kept_exports
from search_app.jobs import jobs
from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.components.grid import image_grid, save_slice
from search_app.ui.components.report import Align, alarm, card, cards, link, report, table
from search_app.ui.data import queries
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images, share

VIEWS = {
    "images": "Images",
    "classes": "Classes",
    "changes": "Changes",
    "duplicates": "Near-duplicates",
    "leaks": "Leak check",
    "definition": "Definition and export",
}
ROLES = {"": "no role", "train": "for training", "evaluation": "for evaluation", "regression": "for regression"}
FORMATS = (
    "imagefolder",
    "coco",
    "yolo",
    "voc",
    "csv",
    "jsonl",
    "parquet",
    "webdataset",
    "hf",
    "list",
    "label-studio",
    "lance",
)
MOST_SHOWN = 2_000
GROUPS_SHOWN = 60


_exporting: dict[tuple[str, str, str], jobs.Job] = {}  # by lake, slice and format


def page() -> None:
    """The Slices page."""
    if not queries.status(queries.stamp())["images"]:
        return empty_states.no_images()
    asked = session.param("set")
    if not asked:
        return _all()
    try:
        made = slices.get(session.lake(), asked)
    except BadInput as error:
        empty_states.empty("This slice is not there", escape(str(error)))
        with st.container(horizontal_alignment="center"):
            if st.button("All slices"):
                _leave()
        return None
    return _one(made)


# The list --------------------------------------------------------------------------------------------------


def _all() -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("A slice is a **named set of images**: a definition, and what it held when it was made.")
        st.space("stretch")
        _make()
    known = slices.list(session.lake())
    if not known:
        return empty_states.empty(
            "No slices yet",
            "Select images on any page and press **L**, or save what the filters above show.",
            for_this_lake("slice", "create", "NAME", "--where", "SQL"),
        )
    versions: dict[str, int] = {}
    for one in known:
        versions[one.name] = versions.get(one.name, 0) + 1
    rows = [
        [
            link(one.name, "slices", set=one.name),
            one.role or "–",
            "live" if one.live else count(one.size),
            count(versions[one.name]),
            _short(f"{one.kind}: {one.definition}", 70),
            f"{one.created_at:%d %b %Y, %H:%M} UTC",
        ]
        for one in slices.newest(session.lake())
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Slice", "left", "Its newest version"),
        ("Role", "left", "What it is for: training never gets what evaluation and regression slices have"),
        ("Images", "right", "In the newest version; a live slice is counted when it is opened"),
        ("Versions", "right", "Those that are there"),
        ("Definition", "left", ""),
        ("Made", "left", ""),
    ]
    report([[table("Slices", columns, rows)]], key="slices")
    return None


def _make() -> None:
    """Save what the filters above show."""
    where = scope.current().where()
    with st.popover("New slice from the filters", type="primary"), st.form("new-slice", border=False):
        st.caption(f"What the filters above show: {images(queries.totals(where)['images'])}.")
        name = st.text_input("Name", placeholder="rainy-night")
        role = st.selectbox("Role", list(ROLES), format_func=ROLES.__getitem__)
        live = st.checkbox("Live", help="Keep the definition only: its images are found anew at every use")
        look = st.form_submit_button("Look first")
        save = st.form_submit_button("Save", type="primary")
    if look or save:
        how: dict[str, Any] = {"where": where or "true", "role": role or None, "live": live}
        if save:
            save_slice(name.strip(), **how)
        else:
            _look_first(name.strip() or "unnamed", how)


@st.dialog("Before saving", width="large")
def _look_first(name: str, how: dict[str, Any]) -> None:
    from embeddings.duplicates import leaks

    try:
        made = slices.draft(session.lake(), name, **how)
        st.markdown(f"**{images(len(made.members))}**")
        _class_table(slices.balance(session.lake(), made.found.contents))
        found = _duplicates(queries.stamp(), tuple(made.members))
        if found is None:
            st.caption("Near-duplicates are not known: nothing is embedded yet.")
        else:
            st.markdown(f"{count(len(found[0]))} groups of near-duplicates, {images(found[1])} more than needed.")
        told = leaks.check(session.lake(), made.members, made.role, apart_from=name).words()
        if made.role:
            (st.warning if told else st.success)(escape(told) or "Nothing is shared with slices of the other kind.")
    except LakeloopError as error:
        st.error(escape(str(error)))


# One slice -------------------------------------------------------------------------------------------------


def _one(made: Slice) -> None:
    lake = session.lake()
    erased = slices.erased_count(lake, made)
    try:
        contents = slices.contents(lake, made)
    except BadInput as error:  # a live slice whose definition does not hold any more
        contents = None
        st.error(escape(str(error)))
    names: list[str] = [] if contents is None else contents["image_id"].to_pylist()
    _head(made, len(names), erased)
    view = session.param("show") if session.param("show") in VIEWS else "images"
    chosen = st.segmented_control(
        "View", list(VIEWS), default=view, format_func=VIEWS.__getitem__, label_visibility="collapsed", required=True
    )
    if chosen != view:
        session.put(show=None if chosen == "images" else chosen, open=None, sel=None, versus=None)
        st.rerun()
    if contents is None and view != "definition":
        return None
    match view:
        case "classes":
            _class_table(slices.balance(lake, contents))
            if contents is not None and contents["label_events"].null_count:
                st.caption("Made before slices froze their labels: these are today's.")
        case "changes":
            _changes(made)
        case "duplicates":
            _near(names)
        case "leaks":
            _leaks(made, names)
        case "definition":
            _definition(made)
        case _:
            _images(names)
    return None


def _head(made: Slice, size: int, erased: int) -> None:
    lake = session.lake()
    every = [s for s in slices.list(lake) if s.name == made.name]
    named = {f"{name}@{version}": tag for (name, tag), version in slices.tags(lake).items()}
    with st.container(horizontal=True, vertical_alignment="center", key="slice-actions"):
        if st.button("All slices", type="tertiary"):
            _leave()
        st.markdown(f"› **{escape(made.name)}**", width="content")
        version = st.selectbox(
            "Version",
            [s.id for s in every],
            index=[s.id for s in every].index(made.id),
            format_func=lambda one: f"v{one.rpartition('@')[2]}" + (f" · {named[one]}" if one in named else ""),
            label_visibility="collapsed",
            width=150,
            key=f"version-{made.id}",
        )
        if version != made.id:
            session.put(set=version, open=None, sel=None, versus=None)
            st.rerun()
        role = st.selectbox(
            "Role",
            list(ROLES),
            index=list(ROLES).index(made.role or ""),
            format_func=ROLES.__getitem__,
            label_visibility="collapsed",
            width=170,
            key=f"role-{made.id}-{made.role}",
        )
        if role != (made.role or ""):
            _set_role(made, role or None)
        said = images(size) + (f", {count(erased)} erased" if erased else "") + (" now" if made.live else "")
        st.caption(said, width="content")
        st.space("stretch")
        if made.live and st.button("Freeze", help="Its next version, with the images it has now"):
            _freeze(made)
        if not made.live and st.button("Look at it everywhere", help="Make it the scope of every page"):
            session.go("search", slice=made.id)
        _tag_form(made)
        with st.popover("Delete", type="tertiary"):
            st.markdown(f"Delete **{escape(made.id)}**? Its images stay. The number is not given out again.")
            if st.button("Delete this version", type="primary"):
                _delete(made)
    st.caption(escape(_short(f"{made.kind}: {made.definition}", 160)))


def _images(names: Sequence[str]) -> None:
    shown = queries.answers_of(names[:MOST_SHOWN])
    more = f", the first {MOST_SHOWN:,} of them" if len(names) > MOST_SHOWN else ""
    if not shown:
        return empty_states.empty(
            "Nothing is in it now", "No image of the lake passes its definition, or all were erased."
        )
    return image_grid(shown, "confidence", f"{images(len(names))}{more}", key="members")


def _class_table(classes: Sequence[dict[str, Any]]) -> None:
    total = sum(one["images"] for one in classes)
    rows = [
        [
            one["label"] if one["label"] is not None else alarm("no label"),
            count(one["images"]),
            share(one["images"] / total),
        ]
        for one in classes
    ]
    columns: list[tuple[str, Align, str]] = [
        ("Class", "left", "By the labels the slice was made with"),
        ("Images", "right", ""),
        ("Share", "right", ""),
    ]
    report([[table("Classes", columns, rows), None]], key="classes")


def _changes(made: Slice) -> None:
    others = [s for s in slices.list(session.lake()) if s.id != made.id]
    if not others:
        return empty_states.empty(
            "There is no other slice", "Save another version or another slice, and compare them here."
        )
    same = [s for s in others if s.name == made.name]
    earlier = [s for s in same if s.version < made.version]
    default = (earlier or same or others)[0]
    asked = next((s for s in others if s.id == session.param("versus")), default)
    ordered = [*same, *(s for s in others if s.name != made.name)]
    chosen = st.selectbox("Compared with", [s.id for s in ordered], index=ordered.index(asked), width=320)
    if chosen != asked.id:
        session.put(versus=chosen, open=None, sel=None)
        st.rerun()
    found = slices.diff(session.lake(), asked, made)
    changed = "not known" if found.labels_changed is None else count(len(found.labels_changed))
    st.markdown(
        f"From {escape(found.before)} to {escape(found.after)}: "
        f"**{count(len(found.added))} added**, "
        f"**{count(len(found.removed))} removed**, {count(found.kept)} in both; labels changed: {changed}"
        + (f"; {count(found.erased)} erased." if found.erased else ".")
    )
    left, right = st.columns(2, gap="medium")
    for place, title, names in ((left, "Added", found.added), (right, "Removed", found.removed)):
        with place:
            if names:
                rows = queries.answers_of(names[:MOST_SHOWN])
                image_grid(rows, "confidence", f"{title}: {images(len(names))}", key=title.lower())
            else:
                st.markdown(f"**{title}**: none")
    if found.labels_changed:
        rows = queries.answers_of(found.labels_changed[:MOST_SHOWN])
        image_grid(rows, "confidence", f"Labels changed: {images(len(found.labels_changed))}", key="relabelled")
    return None


@st.cache_data(max_entries=8, show_spinner=False)
def _duplicates(stamp: queries.Stamp, names: tuple[str, ...]) -> tuple[list[list[str]], int, int, float] | None:
    """Groups, images more than needed, images without a vector, and the cosine; None when nothing is embedded."""
    from embeddings.duplicates import duplicates

    embedded = [one for one in session.lake().embedders() if one.dim is not None]
    if not embedded:
        return None
    found = duplicates.find(session.lake(), names, embedder=embedded[0].name)
    return found.groups, found.spare, found.without_vector, found.threshold


def _near(names: Sequence[str]) -> None:
    with st.spinner("Comparing the images …", show_time=True):
        found = _duplicates(queries.stamp(), tuple(names))
    if found is None:
        return empty_states.not_embedded()
    groups, spare, without, threshold = found
    note = (
        f"{count(len(groups))} groups of the same view: {images(spare)} more than needed. Looked at from cosine "
        f"{threshold:g} on, then laid over each other."
        + (f" {images(without)} could not be compared: no vector." if without else "")
    )
    shown = [
        card(link(images(len(group)), "search", like=group[0]), "", "", [], group[:6])
        for group in groups[:GROUPS_SHOWN]
    ]
    st.markdown(note)
    report([[cards("Near-duplicates", "", shown, "No two of its images show the very same view.")]], key="near")
    return None


def _leaks(made: Slice, names: Sequence[str]) -> None:
    from embeddings.duplicates import leaks

    if made.role is None:
        return empty_states.empty(
            "It has no role", "Say above what the slice is for: training must not see what evaluation has."
        )
    with st.spinner("Comparing the images …", show_time=True):
        found = leaks.check(session.lake(), names, made.role, apart_from=made.name)
    against = ", ".join(escape(one) for one in found.against)
    if not found.against:
        kind = "evaluation or regression" if made.role == "train" else "training"
        return empty_states.empty("Nothing to compare with", f"The lake has no {kind} slice yet.")
    if not found.images:
        st.success(f"None of its images, and no near-duplicate of one, is in {against}.")
    else:
        st.error(escape(found.words()) + ".")
        image_grid(
            queries.answers_of(found.images[:MOST_SHOWN]), "confidence", images(len(found.images)), key="leaking"
        )
    if found.uncompared:
        st.caption(f"{images(found.uncompared)} could be compared by identity only: no vector.")
    return None


def _definition(made: Slice) -> None:
    lake = session.lake()
    left, right = st.columns(2, gap="medium")
    with left:
        st.markdown("**As code**")
        said = slices.spec(lake, made)
        if len(said.get("ids", ())) > 20:
            st.caption(f"The first 20 of {len(said['ids']):,} ids; the command gives all.")
            said = said | {"ids": said["ids"][:20]}
        st.code(json.dumps(said, indent=2, ensure_ascii=False), language="json", wrap_lines=True, height=240)
        st.caption("Make it again at another time, or in another lake")
        show = for_this_lake("slice", "show", made.id, "--spec")
        st.code(
            f"{show} > {made.name}.json\n" + for_this_lake("slice", "create", made.name, "--spec", f"{made.name}.json")
        )
    with right:
        st.markdown("**Export**")
        chosen = st.selectbox("Format", FORMATS, width=200)
        if lake.folder is not None and not made.live:
            _export(made.id, chosen)
        st.caption("With a manifest of checksums; an export that was stopped goes on where it was. To another place:")
        st.code(
            for_this_lake("slice", "export", made.id, "--format", chosen, "--out", f"{made.name}-v{made.version}"),
            wrap_lines=True,
        )
        st.markdown("**Python**")
        st.code(f"import lake\n\nlake.open({lake.uri!r}).slice({made.id!r}).dataset()", language="python")
        st.caption(
            f"Made at version {count(made.predictions_version)} of predictions, {made.created_at:%Y-%m-%d %H:%M} UTC"
        )


@st.fragment(run_every=0.7)
def _export(slice_id: str, format: str) -> None:
    """Makes the export beside the lake, in a process of its own, and hands it out."""
    lake = session.lake()
    made = slices.get(lake, slice_id)
    key = (lake.uri, slice_id, format)
    job = _exporting.get(key)
    if job is not None and not job.done:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.progress(job.share, f"Writing: {job.share:.0%}")
            if st.button("Cancel", type="tertiary"):
                job.cancel()
        return
    if job is not None and job.error is not None:
        st.error(escape(f"No export: {job.error}"))
    kept = kept_exports.of(lake, made).get(format)
    if kept is not None:
        url = f"/v1/exports/{quote(kept.name)}"
        st.link_button(f"Download {count(kept.images)} images, {kept.bytes / 2**20:,.1f} MiB", url)
        left = len(job.result["left_out"]) if job is not None and job.result is not None else 0
        if left:
            st.caption(f"{images(left)} could not be written; lakeloop-export.json says which, and why.")
    elif st.button("Make the export", type="primary"):
        how = {"name": slice_id, "format": format, "out": str(kept_exports.place(lake, made, format))}
        _exporting[key] = jobs.Job("search_app.jobs.export_job", lake.uri, how)
        session.wrote("slice export", slice_id, {"format": format})
        st.rerun(scope="fragment")


# Changing it -----------------------------------------------------------------------------------------------


def _set_role(made: Slice, role: str | None) -> None:
    from embeddings.duplicates import leaks

    try:
        _, found = leaks.assign(session.lake(), made, role)
    except LakeloopError as error:
        session.say(escape(str(error)))
    else:
        session.wrote("slice role", made.id, {"role": role})
        session.say(f"{escape(made.id)} is {ROLES[role or '']}. {escape(found.words())}")
    for key in [key for key in st.session_state if str(key).startswith(f"role-{made.id}-")]:
        del st.session_state[key]
    st.rerun()


def _freeze(made: Slice) -> None:
    from embeddings.duplicates import leaks

    try:
        draft, found = leaks.guarded(session.lake(), slices.freeze(session.lake(), made))
        saved = slices.save(session.lake(), draft)
    except LakeloopError as error:
        st.toast(escape(str(error)), duration="long")
        return
    session.wrote("slice create", saved.id, {"kind": saved.kind, "definition": saved.definition})
    session.say(f"{escape(saved.id)} has {images(saved.size)}. {escape(found.words())}")
    session.put(set=saved.id)
    st.rerun()


def _tag_form(made: Slice) -> None:
    mine = [
        tag
        for (name, tag), version in slices.tags(session.lake()).items()
        if (name, version) == (made.name, made.version)
    ]
    with st.popover("Tags" if not mine else escape(", ".join(mine)), type="tertiary"):
        with st.form(f"tag-{made.id}", border=False):
            tag = st.text_input("Tag", placeholder="gold", help=f"{made.name}@TAG will mean this version")
            if st.form_submit_button("Tag this version"):
                try:
                    slices.tag(session.lake(), made, tag.strip())
                except LakeloopError as error:
                    st.error(escape(str(error)))
                else:
                    session.wrote("slice tag", f"{made.name}@{tag.strip()}", {"version": made.version})
                    st.rerun()
        for one in mine:
            if st.button(f"Remove {escape(one)}", key=f"untag-{made.id}-{one}"):
                slices.untag(session.lake(), made.name, one)
                session.wrote("slice untag", f"{made.name}@{one}", {})
                st.rerun()


def _delete(made: Slice) -> None:
    try:
        slices.delete(session.lake(), made)
    except LakeloopError as error:
        st.toast(escape(str(error)), duration="long")
        return
    session.wrote("slice delete", made.id, {"size": made.size, "definition": made.definition})
    session.say(f"{escape(made.id)} is deleted; its images stay.")
    left = any(s.name == made.name for s in slices.list(session.lake()))
    gone = scope.current().slice == made.id
    session.put(set=made.name if left else None, show=None, versus=None, open=None, sel=None)
    if gone:
        session.put(slice=None)
    st.rerun()


def _leave() -> None:
    session.put(set=None, show=None, versus=None, open=None, sel=None)
    st.rerun()


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
