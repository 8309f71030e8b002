"""The slices that fail, in sentences with their images; beside them what is known of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from lake.analytics.metrics import MetricCell
from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.components.grid import image_grid, save_slice
from search_app.ui.components.report import Block, Link, link, numbers, report, stack
from search_app.ui.components.report.tables import finding, findings
from search_app.ui.data import active_searches, analysis, queries, running_discovery
from search_app.ui.pages.analyse import dimensions
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images, interval, percent, share, span

if TYPE_CHECKING:
    from embeddings.discovery.findings import Discovery, FailingSlice

PATIENCE = 1.0  # seconds a page waits before it says how far it is
FACES = 6
BY = {"both": "columns and kinds of image", "metadata": "columns only", "cluster": "kinds of image only"}
EXAMPLES = 5


def show(where: str | None) -> None:
    """The view."""
    whole = analysis.by((), where).whole
    errors = "judged" if whole.known else "confidence"
    by = session.param("by") if session.param("by") in BY else "both"
    running = running_discovery.of(session.lake(), queries.stamp(), where=where, by=by, errors=errors)
    running.wait(PATIENCE)
    first = analysis.names()[0] if session.lake().promoted() else "label"
    beside = _by_column(first, where)
    if not running.done:
        _progress(running)
        return report([[_numbers(whole), beside]], key="failing-yet")
    if running.found is None:
        report([[_numbers(whole)], [beside]], key="failing-none")
        return empty_states.empty("Nothing to find failures by", escape(running.error or ""))
    found = running.found
    report([[_findings(found), stack(_numbers(whole), beside)]], key="failing")
    _choose_by(by)
    picked = session.param("finding")
    what, _, place = picked.partition("-")
    if place.isdigit() and int(place) < len(found.findings):
        _act(what, found.findings[int(place)], where)
    return None


@st.fragment(run_every=0.4)
def _progress(running: running_discovery.Discovering) -> None:
    if running.done:
        st.rerun()
    st.progress(running.share, f"Looking for slices that fail: {running.stage} …")


def _choose_by(by: str) -> None:
    chosen = st.selectbox(
        "Look through",
        list(BY),
        list(BY).index(by),
        format_func=lambda one: f"Look through {BY[one]}",
        label_visibility="collapsed",
        width=360,
    )
    if chosen != by:
        session.put(by=chosen, finding=None)
        st.rerun()


def _numbers(whole: MetricCell) -> Block:
    items = [("Answers", count(whole.answers), "", "Predictions a model made, inside the scope")]
    if whole.known:
        help = "Answers that a label of their image, or else a person's verdict, calls right or wrong"
        items.append(("Judged", count(whole.known), "", help))
        items.append(("Wrong", percent(whole.error), f"95 % {interval(whole.error)}", "Of the judged answers"))
    if whole.confidence is not None:
        items.append(("Mean confidence", f"{whole.confidence:.2f}", "", "The model's own belief in its answers"))
    return numbers("", *items)


def _by_column(name: str, where: str | None) -> Block:
    found = analysis.by((name,), where)
    return dimensions.one(found, f"By {found.dimensions[0].title}", where, most=12)


def _findings(found: Discovery) -> Block:
    if found.errors == "confidence":
        note = (
            "Nothing is judged yet, so these are slices the model is less sure of: not what it is sure and wrong about."
        )
        empty = "No slice has a lower confidence than chance explains."
    else:
        note = ""
        empty = "No slice fails more than chance explains."
    sample = "" if found.total == found.predictions else f" (a sample of {count(found.total)})"
    looked = (
        f"{count(found.compared)} groups of {count(found.predictions)} answers{sample} were compared: values of "
        f"columns, metadata and time in combinations of up to {found.max_conditions}, and clusters. Shown is what "
        "dealing the errors anew at random would bring up in less than 1 % of lakes."
    )
    parts = [note, looked, found.remark[:1].upper() + found.remark[1:] + "." if found.remark else ""]
    cards = [_card(one, place, found) for place, one in enumerate(found.findings)]
    return findings("Where does it fail?", " ".join(one for one in parts if one), cards, empty) | {"wide": 1.35}


def _card(one: FailingSlice, place: int, found: Discovery) -> Block:
    points = abs(round(100 * (one.worse.value or 0)))
    title = one.title[:1].upper() + one.title[1:]
    if found.errors == "judged":
        lead, small = (
            f"{share(one.error.value)} wrong",
            f"{count(one.wrong)} of {count(one.evaluated)}, 95 % {span(one.error)}",
        )
        first = (
            f"{points} point{'' if points == 1 else 's'} worse than the rest ({share(one.rest.value)} of "
            f"{count(one.rest.n)} wrong): {count(one.excess)} errors too many."
        )
    else:
        lead = f"mean confidence {1 - one.wrong / one.evaluated:.2f}"
        small = f"of {count(one.evaluated)} answers"
        first = f"The rest has {1 - (one.rest.value or 0):.2f}."
    lines = [first]
    if one.same:
        names = ", ".join(f"{name} ({share(part)} the same)" for name, part in one.same)
        lines.append(f"Nearly the same images: {names}.")
    return finding(_to(one, place, title), lead, small, lines, one.images[:FACES], _actions(one, place))


def _to(one: FailingSlice, place: int, title: str) -> Link:
    return link(title, "analyse", finding=f"show-{place}", by=session.param("by") or None)


def _actions(one: FailingSlice, place: int) -> list[Link]:
    by = session.param("by") or None
    actions = []
    if one.node is not None:
        tree, _, path = one.node.partition("/")
        actions += [
            link("Use as scope", "analyse", node=one.node),
            link("Open in Drill-down", "drilldown", tree=tree, at=path),
        ]
    elif one.predicate is not None:
        actions.append(link("Use as scope", "analyse", where=_joined(one.predicate)))
    actions.append(link("Save as slice", "analyse", finding=f"keep-{place}", by=by))
    actions.append(link("Find all like its errors", "analyse", finding=f"like-{place}", by=by))
    return actions


def _joined(predicate: str) -> str:
    """The predicate and the SQL filter of the page."""
    mine = scope.current().sql
    return f"({mine}) AND {predicate}" if mine else predicate


def _act(what: str, one: FailingSlice, where: str | None) -> None:
    """What a link of a card asked for. Nothing is written before a person presses a button here."""
    match what:
        case "show":
            _images(one, where)
        case "keep":
            _save(one, where)
        case "like":
            session.put(finding=None)
            active_searches.begin(examples=one.images[:EXAMPLES])


def _images(one: FailingSlice, where: str | None) -> None:
    """Its images, wrong answers first."""
    rows = (
        queries.answers_of(one.image_ids)
        if one.predicate is None
        else _rows(f"{queries.every(where)} AND ({one.predicate})")
    )
    place = {image: at for at, image in enumerate(one.images)}
    rows = sorted(rows, key=lambda row: place.get(row["image_id"], len(place)))
    image_grid(rows, "confidence", f"{one.title}: {images(len(rows))}, its surest errors first", key="finding")


def _rows(where: str) -> list[queries.Row]:
    return queries.rows(f"""
        SELECT image_id, label, confidence FROM answers_judged WHERE {where}
        QUALIFY row_number() OVER (PARTITION BY image_id ORDER BY timestamp DESC NULLS LAST, ingested_at DESC) = 1
        ORDER BY correct NULLS LAST, confidence DESC NULLS LAST, image_id LIMIT 10000""")


@st.dialog("Save as slice", on_dismiss=lambda: session.put(finding=None))
def _save(one: FailingSlice, where: str | None) -> None:
    from embeddings.discovery.findings import slug

    st.markdown(f"{escape(one.title)}, at this moment")
    with st.form("save-finding", border=False):
        name = st.text_input("Name", slug(one), max_chars=100)
        if st.form_submit_button("Save slice", type="primary"):
            session.put(finding=None)
            if one.predicate is None:
                save_slice(name.strip(), ids=one.image_ids)
            else:
                save_slice(name.strip(), where=f"{queries.every(where)} AND ({one.predicate})")
