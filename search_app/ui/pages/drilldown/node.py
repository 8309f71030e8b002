"""One node of a tree: its path, actions and views (clusters below it, images, over time, other cuts)."""

from __future__ import annotations

import streamlit as st

from lake.analytics.statistics import wilson
from lake.errors import LakeloopError
from lake.storage.store import literal
from search_app.ui import session
from search_app.ui.components import charts, empty_states
from search_app.ui.components.cards import cluster_cards
from search_app.ui.components.grid import image_grid, save_slice
from search_app.ui.components.report import report
from search_app.ui.data import active_searches, groups, queries
from search_app.ui.pages.drilldown import clustering, cuts, search_strip
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import images, share, span

MEMBERS_SHOWN = 10_000
VIEWS = {"clusters": "Clusters", "images": "Images", "time": "Over time", "cuts": "Other cuts"}
EXAMPLES = 3  # medoids that a search for more of a cluster starts with: its most typical images
SORTS = {"size": "Largest first", "error": "Highest error first", "unsure": "Least confident first"}


def show(node: queries.Row | None, search_id: str) -> None:
    """The node; None if the tree has no such node. `search_id`: the active search, or ""."""
    if node is None:
        return empty_states.empty(
            "Cluster not found", "This tree has no such cluster. The link may be from another lake."
        )
    children = queries.children(node["tree"], node["node"])
    view = session.param("view")
    view = view if view in VIEWS and (children or view != "clusters") else "clusters" if children else "images"
    _actions(node, bool(children), view)
    if view == "images":
        return _members(node)
    if view == "time":
        return _over_time(node)
    if view == "cuts":
        return cuts.show(node, bool(children), clustering.make)
    return _clusters(node["tree"], children, search_id)


def _clusters(tree: str, children: list[queries.Row], search_id: str) -> None:
    order = {
        "size": lambda row: -row["size"],
        "error": lambda row: -(wilson((row["known"] or 0) - (row["right"] or 0), row["known"] or 0).low or 0),
        "unsure": lambda row: 2 if row["confidence"] is None else row["confidence"],
    }[session.param("sort") if session.param("sort") in SORTS else "size"]
    known = sum(row["known"] or 0 for row in children)
    wrong = sum((row["known"] or 0) - (row["right"] or 0) for row in children)
    action = cluster_cards(
        sorted(children, key=order),
        groups.make_up([row["id"] for row in children]),
        wrong / known if known else None,
        bool(search_id),
    )
    if action is None:
        return None
    if action.name in ("accept", "refuse"):
        mark = search_strip.accept if action.name == "accept" else search_strip.refuse
        return mark(search_id, f"{tree}/{action.node}")
    montage = action.name == "montage"
    session.put(tree=tree, at=action.node, view="images" if montage else None, size="xs" if montage else None)
    session.put(open=None, sel=None)
    st.rerun()


def _breadcrumb(tree: str, path: str) -> None:
    steps = path.split(".") if path else []
    names = queries.names(tree)
    for depth in range(len(steps) + 1):
        ancestor = ".".join(steps[:depth])
        name = escape(names.get(ancestor, f"Cluster {ancestor}" if ancestor else "All"))
        if depth == len(steps):
            st.markdown(f"**{name}**", width="content")
        else:
            if st.button(name, type="tertiary", key=f"crumb-{ancestor}"):
                session.put(at=ancestor, view=None, open=None, sel=None)
                st.rerun()
            st.markdown("›", width="content")


def _actions(node: queries.Row, is_split: bool, view: str) -> None:
    path, node_id = node["node"], node["id"]
    with st.container(horizontal=True, vertical_alignment="center", key="node-actions"):
        _breadcrumb(node["tree"], path)
        st.caption(images(node["size"]), width="content")
        st.space("stretch")
        if not is_split and view != "cuts" and st.button("Split this cluster", help="Cluster its images again"):
            clustering.make(node["size"], node=node_id)
        _choose_view(path, is_split, view)
        _more(node, is_split)
        with (
            st.popover("Save as slice", type="primary" if path else "secondary"),
            st.form(f"slice-{path}", border=False),
        ):
            name = st.text_input("Name", placeholder="e.g. poly cells")
            if st.form_submit_button("Save slice", type="primary"):
                save_slice(name.strip(), cluster=node_id)


def _more(node: queries.Row, is_split: bool) -> None:
    """The menu of less frequent actions."""
    path, node_id = node["node"], node["id"]
    actions = ["Rename"] if path else []
    actions += ["Undo this split"] if is_split and path else []
    actions += ["Find all like its centre", "Use as scope"] if path else []
    if not actions:
        return
    key = f"more-{node_id}"
    st.menu_button("More", actions, key=key, on_click=_choose, args=(key,))
    if st.session_state.get("_more", ("", ""))[0] != key:
        return
    match st.session_state.pop("_more")[1]:
        case "Rename":
            _rename(node)
        case "Undo this split":
            _uncut(node_id)
        case "Find all like its centre":
            active_searches.begin(examples=list(node["medoids"])[:EXAMPLES])
        case "Use as scope":
            session.put(node=node_id, open=None, sel=None)
            st.rerun()


def _choose(key: str) -> None:
    """Keeps the choice until it is carried out: a run that is interrupted forgets which entry was clicked."""
    st.session_state["_more"] = (key, st.session_state[key])


@session.handler("cluster uncut")
def _uncut(node_id: str) -> None:
    from embeddings.clusters.trees import uncut

    uncut(session.lake(), node_id)
    session.wrote(node_id, {})
    session.put(view=None, open=None, sel=None)
    st.rerun()


@st.dialog("Rename this cluster")
def _rename(node: queries.Row) -> None:
    with st.form("rename", border=False):
        name = st.text_input(
            "Name", node["name"] or node["suggested"] or "", max_chars=80, help="Leave empty to show its number again"
        )
        if st.form_submit_button("Rename", type="primary"):
            _save_name(node["id"], name)


@session.handler("cluster rename")
def _save_name(node_id: str, name: str) -> None:
    from embeddings.clusters.trees import rename

    try:
        rename(session.lake(), node_id, name)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return
    session.wrote(node_id, {"name": name.strip()})
    st.rerun()


def _choose_view(path: str, is_split: bool, view: str) -> None:
    """The choice of a view, and of the order of the cards."""
    if view == "clusters":
        sort = session.param("sort") if session.param("sort") in SORTS else "size"
        chosen = choice("Sort", SORTS, sort, 180)
        if chosen and chosen != sort:
            session.put(sort=chosen)
            st.rerun()
    titles = {name: title for name, title in VIEWS.items() if is_split or name != "clusters"}
    session.switch("view", titles, view, key=f"view-{path}-{is_split}", clears=["size"])


def _over_time(node: queries.Row) -> None:
    """Predictions and accuracy of the node over time, which show drift."""
    where = f"image_id IN (SELECT image_id FROM cluster_members WHERE id = {literal(node['id'])})"
    days = queries.by_day(where)
    if not days:
        return empty_states.empty(
            "No predictions with a timestamp", "Charts over time need predictions that have a timestamp."
        )
    assigned = queries.assigned(node["id"])
    note = (
        f"{images(assigned['assigned'])} were assigned to this cluster after it was made, the last on "
        f"{assigned['newest']:%d %b %Y}."
        if assigned["assigned"]
        else "No image was assigned to this cluster since it was made."
    )
    st.caption(f"{note} To assign new images, run `{for_this_lake('cluster', 'assign', '--tree', node['tree'])}`.")
    report([[charts.volume(days), charts.accuracy(days)]], key="node-time")
    return None


def _members(node: queries.Row) -> None:
    rows = queries.members(node["id"], MEMBERS_SHOWN)
    more = f" of {node['size']:,}" if node["size"] > len(rows) else ""
    image_grid(rows, "confidence", f"{images(len(rows))}{more}{_summary(node)}", key="members")


def _summary(node: queries.Row) -> str:
    """The facts on the cluster's card, to continue the title of its images."""
    siblings = queries.children(node["tree"], node["parent"] or "")
    row = next((sibling for sibling in siblings if sibling["id"] == node["id"]), None)
    if row is None:
        return " in this tree"
    known, kinds = row["known"] or 0, groups.make_up([node["id"]]).get(node["id"], [])
    wrong = wilson(known - (row["right"] or 0), known)
    facts = (
        [f"{share(wrong.value)} wrong ({known - row['right']} of {known} labelled, 95 % {span(wrong)})"]
        if known
        else []
    )
    facts += [f"{share(part)} {name} {value}" for name, value, part in kinds]
    return ", ".join([" in this cluster", *facts])


def choice(label: str, titles: dict[str, str], chosen: str, width: int) -> str | None:
    """A select box without a visible label: `titles` by key, `chosen` selected. Returns the key that was selected."""
    return st.selectbox(
        label,
        list(titles),
        list(titles).index(chosen),
        format_func=titles.__getitem__,
        label_visibility="collapsed",
        width=width,
    )
