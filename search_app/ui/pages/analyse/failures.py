"""The view Worst slices: automatically found slices with a high error, with their images."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import streamlit as st

from lake.analytics.metrics import MetricCell
from lake.sql.where import conjunction, predicate
from search_app.security.page_actions import NotAllowed
from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.components.grid import image_grid, save_slice
from search_app.ui.components.report import Block, Link, link, numbers, report, stack
from search_app.ui.components.report.tables import finding, findings
from search_app.ui.data import active_searches, analysis, jobs, queries, running_discovery
from search_app.ui.data.running_discovery import DiscoveryJob, RunningDiscovery
from search_app.ui.pages.analyse import dimensions
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images, interval, percent, share, span

if TYPE_CHECKING:
    from embeddings.discovery.findings import Discovery, FailingSlice

WAIT_SECONDS = 1.0  # before the page shows the progress
IMAGES_SHOWN = 6
BY = {"both": "columns and clusters", "metadata": "columns only", "cluster": "clusters only"}
EXAMPLES = 5


def show(where: str | None) -> None:
    """The view."""
    whole = analysis.by((), where).whole
    errors = "judged" if whole.known else "confidence"
    by = session.param("by") if session.param("by") in BY else "both"
    first = analysis.names()[0] if session.lake().promoted() else "label"
    column = _by_column(first, where)
    try:
        running = running_discovery.of(
            session.lake(), queries.stamp(), whole.predictions, partial(jobs.submit, "discover"),
            where=where, by=by, errors=errors,
        )  # fmt: skip
    except NotAllowed as error:
        report([[_numbers(whole)], [column]], key="failing-none")
        return empty_states.empty("Nobody has searched for the worst slices yet", escape(str(error)))
    running.wait(WAIT_SECONDS)
    if not running.done:
        _progress(running)
        return report([[_numbers(whole), column]], key="failing-yet")
    if running.result is None:
        report([[_numbers(whole)], [column]], key="failing-none")
        empty_states.empty("No worst slices", escape(running.error or ""))
        if isinstance(running, DiscoveryJob) and st.button("Search again"):
            jobs.retry(running.job)
            st.rerun()
        return None
    discovery = running.result
    report([[_findings(discovery), stack(_numbers(whole), column)]], key="failing")
    _choose_by(by)
    action, _, index = session.param("finding").partition("-")
    if index.isdigit() and int(index) < len(discovery.findings):
        _act(action, discovery.findings[int(index)], where)
    return None


@st.fragment(run_every=0.4)
def _progress(running: RunningDiscovery | DiscoveryJob) -> None:
    if running.done:
        st.rerun()
    st.progress(running.share, f"Searching for slices with a high error: {running.stage} …")


def _choose_by(by: str) -> None:
    chosen = st.selectbox(
        "Search",
        list(BY),
        list(BY).index(by),
        format_func=lambda name: f"Search {BY[name]}",
        label_visibility="collapsed",
        width=360,
    )
    if chosen != by:
        session.put(by=chosen, finding=None)
        st.rerun()


def _numbers(whole: MetricCell) -> Block:
    items = [("Predictions", count(whole.predictions), "", "Inside the scope and filters")]
    if whole.known:
        help = "Predictions whose image has a label, or that a person marked correct or incorrect"
        items.append(("Reviewed", count(whole.known), "", help))
        items.append(("Wrong", percent(whole.error), f"95 % {interval(whole.error)}", "Of the reviewed predictions"))
    if whole.confidence is not None:
        items.append(("Mean confidence", f"{whole.confidence:.2f}", "", ""))
    return numbers("", *items)


def _by_column(name: str, where: str | None) -> Block:
    breakdown = analysis.by((name,), where)
    return dimensions.dimension_table(breakdown, f"By {breakdown.dimensions[0].title}", most=12)


def _findings(discovery: Discovery) -> Block:
    if discovery.errors == "confidence":
        note = "No prediction is reviewed yet. These slices have a low confidence; confident errors are not found."
        empty = "No slice has a lower confidence than chance explains."
    else:
        note = ""
        empty = "No slice has a higher error than chance explains."
    sample = "" if discovery.total == discovery.predictions else f" (a sample of {count(discovery.total)})"
    scope_note = (
        f"{count(discovery.compared)} groups of {count(discovery.predictions)} predictions{sample} were compared: "
        f"values of columns, metadata and time, up to {discovery.max_conditions} at once, and clusters. With errors "
        "shuffled at random, fewer than 1 % of lakes would show a finding."
    )
    remark = discovery.remark[:1].upper() + discovery.remark[1:] + "." if discovery.remark else ""
    text = " ".join(part for part in (note, scope_note, remark) if part)
    cards = [_card(finding, index, discovery) for index, finding in enumerate(discovery.findings)]
    return findings("Where the model fails", text, cards, empty) | {"wide": 1.35}


def _card(failing: FailingSlice, index: int, discovery: Discovery) -> Block:
    points = abs(round(100 * (failing.worse.value or 0)))
    title = failing.title[:1].upper() + failing.title[1:]
    if discovery.errors == "judged":
        lead, small = (
            f"{share(failing.error.value)} wrong",
            f"{count(failing.wrong)} of {count(failing.reviewed)}, 95 % {span(failing.error)}",
        )
        first = (
            f"{points} point{'' if points == 1 else 's'} worse than the rest ({share(failing.rest.value)} of "
            f"{count(failing.rest.n)} wrong), which is {count(failing.excess)} more errors."
        )
    else:
        lead = f"mean confidence {1 - failing.wrong / failing.reviewed:.2f}"
        small = f"of {count(failing.reviewed)} predictions"
        first = f"The mean confidence of the rest is {1 - (failing.rest.value or 0):.2f}."
    lines = [first]
    if failing.same:
        names = ", ".join(f"{name} ({share(part)} in common)" for name, part in failing.same)
        lines.append(f"Nearly the same images: {names}.")
    return finding(_to(index, title), lead, small, lines, failing.images[:IMAGES_SHOWN], _actions(failing, index))


def _to(index: int, title: str) -> Link:
    return link(title, "analyse", finding=f"show-{index}", by=session.param("by") or None)


def _actions(failing: FailingSlice, index: int) -> list[Link]:
    by = session.param("by") or None
    actions = []
    if failing.node is not None:
        tree, _, path = failing.node.partition("/")
        actions += [
            link("Use as scope", "analyse", node=failing.node),
            link("Open in Drill-down", "drilldown", tree=tree, at=path),
        ]
    elif failing.predicate is not None:
        actions.append(link("Use as scope", "analyse", where=_joined(failing.predicate)))
    if failing.predicate is not None or len(failing.image_ids) == failing.reviewed:  # a job lists some of many
        actions.append(link("Save as slice", "analyse", finding=f"keep-{index}", by=by))
    actions.append(link("Find all similar to its errors", "analyse", finding=f"like-{index}", by=by))
    return actions


def _joined(condition: str) -> str:
    """The condition combined with the SQL filter of the page."""
    return conjunction(scope.current().sql, condition) or condition


def _act(action: str, failing: FailingSlice, where: str | None) -> None:
    """Carries out the action of a card's link. Nothing is written before the user presses a button."""
    match action:
        case "show":
            _images(failing, where)
        case "keep":
            _save(failing, where)
        case "like":
            session.put(finding=None)
            active_searches.begin(examples=failing.images[:EXAMPLES])


def _images(failing: FailingSlice, where: str | None) -> None:
    """Its images, most confident errors first."""
    rows = (
        queries.predictions_of(failing.image_ids)
        if failing.predicate is None
        else _rows(conjunction(where, failing.predicate))
    )
    position = {image_id: i for i, image_id in enumerate(failing.images)}
    rows = sorted(rows, key=lambda row: position.get(row["image_id"], len(position)))
    image_grid(rows, "confidence", f"{failing.title}: {images(len(rows))}, most confident errors first", key="finding")


def _rows(where: str | None) -> list[queries.Row]:
    return queries.rows(f"""
        SELECT image_id, label, confidence FROM predictions_reviewed WHERE {predicate(where)}
        QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY timestamp DESC NULLS LAST, ingested_at DESC) = 1
        ORDER BY correct NULLS LAST, confidence DESC NULLS LAST, image_id LIMIT 10000""")


@st.dialog("Save as slice", on_dismiss=lambda: session.put(finding=None))
def _save(failing: FailingSlice, where: str | None) -> None:
    from embeddings.discovery.findings import slug

    st.markdown(f"{escape(failing.title)}, the images it has now")
    with st.form("save-finding", border=False):
        name = st.text_input("Name", slug(failing), max_chars=100)
        if st.form_submit_button("Save slice", type="primary"):
            session.put(finding=None)
            if failing.predicate is None:
                save_slice(name.strip(), ids=failing.image_ids)
            else:
                save_slice(name.strip(), where=conjunction(where, failing.predicate))
