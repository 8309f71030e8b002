"""The definition of a slice as JSON, command and Python, and its export in a data set format."""

from __future__ import annotations

import json
from urllib.parse import quote

import streamlit as st

from lake import slices
from lake.slices import Slice, kept_exports
from search_app.ui import session
from search_app.ui.data import jobs
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images

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
IDS_SHOWN = 20


def show(slice_: Slice) -> None:
    """The view."""
    left, right = st.columns(2, gap="medium")
    with left:
        _definition(slice_)
    with right:
        st.markdown("**Export**")
        format = st.selectbox("Format", FORMATS, width=200)
        if session.lake().folder is not None and not slice_.live:
            _export(slice_.id, format)
        st.caption("The export has a manifest of checksums, and an interrupted export resumes. To another folder:")
        folder = f"{slice_.name}-v{slice_.version}"
        st.code(for_this_lake("slice", "export", slice_.id, "--format", format, "--out", folder), wrap_lines=True)
        st.markdown("**Python**")
        code = f"import lake\n\nlake.open({session.lake().uri!r}).slice({slice_.id!r}).dataset()"
        st.code(code, language="python")
        st.caption(
            f"Created at version {count(slice_.predictions_version)} of the table samples, "
            f"{slice_.created_at:%Y-%m-%d %H:%M} UTC"
        )


def _definition(slice_: Slice) -> None:
    st.markdown("**Definition**")
    spec = slices.spec(session.lake(), slice_)
    if len(spec.get("ids", ())) > IDS_SHOWN:
        st.caption(f"The first {IDS_SHOWN} of {len(spec['ids']):,} ids. The command below prints all of them.")
        spec = spec | {"ids": spec["ids"][:IDS_SHOWN]}
    st.code(json.dumps(spec, indent=2, ensure_ascii=False), language="json", wrap_lines=True, height=240)
    st.caption("Create the slice again later, or in another lake")
    show_spec = for_this_lake("slice", "show", slice_.id, "--spec")
    create = for_this_lake("slice", "create", slice_.name, "--spec", f"{slice_.name}.json")
    st.code(f"{show_spec} > {slice_.name}.json\n{create}", language="bash", wrap_lines=True)


@st.fragment(run_every=0.7)
def _export(slice_id: str, format: str) -> None:
    """Starts the export beside the lake, shows the job, and offers its result for download."""
    lake = session.lake()
    slice_ = slices.get(lake, slice_id)
    job = jobs.newest("export", slice=slice_id, format=format)
    if job is not None and "out" in job.arguments:
        job = None
    if job is not None and not job.finished:
        return jobs.bar(job, "export")
    if job is not None and job.state == "failed":
        st.error(escape(f"The export failed: {job.error}"))
    finished = kept_exports.of_slice(lake, slice_).get(format)
    if finished is not None:
        url = f"/v1/exports/{quote(finished.name)}"
        st.link_button(f"Download {count(finished.images)} images, {finished.bytes / 2**20:,.1f} MiB", url)
        left_out = (job.result or {}).get("left_out_count", 0) if job is not None else 0
        if left_out:
            st.caption(f"{images(left_out)} could not be written. lakeloop-export.json lists them with the reasons.")
    elif st.button("Export", type="primary") and jobs.start("export", {"slice": slice_id, "format": format}):
        st.rerun(scope="fragment")
    return None
