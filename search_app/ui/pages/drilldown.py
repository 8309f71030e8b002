"""Drill-down, "Which kind is it?": clusters, opened node by node until the odd kind stands alone."""

from __future__ import annotations

from contextlib import suppress
from threading import Thread
from typing import Any

import streamlit as st

from lake.analytics.statistics import wilson
from lake.errors import LakeloopError
from lake.storage.store import literal
from search_app.ui import session
from search_app.ui.components import charts, empty_states, scope
from search_app.ui.components.cards import cluster_cards
from search_app.ui.components.grid import image_grid, save_slice
from search_app.ui.components.report import report
from search_app.ui.data import active_searches, groups, queries
from search_app.ui.pages import cuts
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import images, share, span

MEMBERS_SHOWN = 10_000
VIEWS = {"clusters": "Clusters", "images": "Images", "time": "Over time", "cuts": "Other cuts"}
EXAMPLES = 3  # medoids that a search for more of a cluster begins with: they are its surest members
SORTS = {"size": "Largest first", "error": "Most wrong first", "unsure": "Least confident first"}


def page() -> None:
    """The Drill-down page."""
    status = queries.status(queries.stamp())
    if empty_states.nothing_to_compare(status):
        return None
    _preload()
    trees = queries.trees()
    known = [row["tree"] for row in trees]
    tree = session.param("tree") if session.param("tree") in known else (known[0] if known else None)
    if tree is None:
        empty_states.empty(
            "No clusters yet",
            "Clusters group images that look alike: an unusual kind stands out and can be saved as a slice.",
        )
        with st.container(horizontal_alignment="center"), st.container(border=True, width=560):
            _cluster_form(status)
        return None
    here = queries.node(tree, session.param("at"))
    search = _toolbar(trees, tree, status, here)
    return _node(here, search)


@st.cache_resource
def _preload() -> None:
    """Imports take seconds: they are made while the page is looked at, not when a button is pressed."""
    Thread(target=_import, name="import clustering", daemon=True).start()


def _import() -> None:
    from embeddings.clusters.clustering import preload

    with suppress(LakeloopError):  # said by the button that needs it
        preload()


def _toolbar(trees: list[queries.Row], tree: str, status: dict[str, Any], here: queries.Row | None) -> str:
    """The choice of a tree, and the search that clusters can be accepted for; returns that search's id or nothing."""
    named = {row["tree"]: _tree_name(row) for row in trees}
    search = _going_on()
    with st.container(horizontal=True, vertical_alignment="center", key="tree-actions"):
        chosen = _choice("Tree", named, tree, 300 if search else 480)
        with st.popover("New clusters", type="tertiary"):
            _cluster_form(status)
        if search is not None:
            _search_strip(search, here)
        elif scope.current().where():
            st.caption(
                "A tree keeps its own images, whatever the scope and filters; new clusters are made inside them."
            )
        else:
            st.caption("Images that look alike, grouped. Open a group, split it, save what stands alone as a slice.")
    if chosen and chosen != tree:
        session.put(tree=chosen, at=None, open=None, sel=None)
        st.rerun()
    return "" if search is None else search.search.id


def _choice(label: str, named: dict[str, str], chosen: str, width: int) -> str | None:
    """A select box without its label: the key of the name picked."""
    return st.selectbox(
        label,
        list(named),
        list(named).index(chosen),
        format_func=named.__getitem__,
        label_visibility="collapsed",
        width=width,
    )


def _tree_name(row: queries.Row) -> str:
    of = f", {row['filter'][:40]}" if row["filter"] else ""
    return f"{images(row['size'])}{of}, {row['created_at']:%d %b %H:%M}"


def _cluster_form(status: dict[str, Any]) -> None:
    where = scope.current().where()
    names = [one["name"] for one in status["embedders"] if one["embedded"]]
    with st.form("cluster", border=False):
        st.caption(
            "Clusters the images of the present scope and filters." if where else "Clusters every image of the lake."
        )
        embedder = st.selectbox("Embedder", names) if len(names) > 1 else names[0]
        method = st.selectbox("Method", list(cuts.METHODS), format_func=cuts.METHODS.__getitem__)
        k = st.number_input("Number of clusters", 2, 200, None, placeholder=cuts.UNSAID, help="For k-means only")
        if st.form_submit_button("Make clusters", type="primary"):
            _make(embedder=embedder, where=where, method=method, k=k if method in cuts.COUNTED else None)


def _make(**how: Any) -> None:
    from embeddings.clusters.trees import cluster

    try:
        with st.spinner("Clustering …", show_time=True):
            made = cluster(session.lake(), **how)
    except LakeloopError as error:
        st.error(escape(str(error)))
        return
    session.wrote("cluster", made.tree, {name: value for name, value in how.items() if value is not None})
    if made.remark:
        st.toast(escape(made.remark), duration="long")
    if how.get("node") is None:
        session.put(tree=made.tree, at=None, open=None, sel=None)
    session.put(view=None)
    st.rerun()


def _node(here: queries.Row | None, search: str) -> None:
    if here is None:
        return empty_states.empty(
            "This cluster is not in the tree", "The link may be from another lake. Choose a tree above."
        )
    tree = here["tree"]
    cards = queries.children(tree, here["node"])
    view = session.param("view")
    view = view if view in VIEWS and (cards or view != "clusters") else "clusters" if cards else "images"
    _actions(here, bool(cards), view)
    if view == "images":
        return _members(here)
    if view == "time":
        return _over_time(here)
    if view == "cuts":
        return cuts.show(here, bool(cards), _make)
    return _clusters(tree, cards, search)


def _clusters(tree: str, cards: list[queries.Row], search: str) -> None:
    order = {
        "size": lambda row: -row["size"],
        "error": lambda row: -(wilson((row["known"] or 0) - (row["right"] or 0), row["known"] or 0).low or 0),
        "unsure": lambda row: 2 if row["confidence"] is None else row["confidence"],
    }[session.param("sort") if session.param("sort") in SORTS else "size"]
    known, wrong = (
        sum(row["known"] or 0 for row in cards),
        sum((row["known"] or 0) - (row["right"] or 0) for row in cards),
    )
    act = cluster_cards(
        sorted(cards, key=order),
        groups.make_up([row["id"] for row in cards]),
        wrong / known if known else None,
        bool(search),
    )
    if act is None:
        return
    if act.name in ("accept", "refuse"):
        _judge(search, f"{tree}/{act.node}", act.name)
    else:
        montage = act.name == "montage"
        session.put(tree=tree, at=act.node, view="images" if montage else None, size="xs" if montage else None)
        session.put(open=None, sel=None)
    st.rerun()


def _going_on() -> active_searches.Held | None:
    """The active search that clusters can be accepted or refused for, or None."""
    search_id = active_searches.going_on()
    if not search_id:
        return None
    try:
        return active_searches.opened(search_id, False)
    except LakeloopError:  # it was deleted, or its embedder was: the page it belongs to says so
        active_searches.work_on("")
        return None


def _search_strip(held: active_searches.Held, here: queries.Row | None) -> None:
    with held.lock:
        search_id, found, name = held.search.id, len(held.search.found()), held.search.name
    st.markdown(f"For **{escape(name or 'this search')}**: {found:,} found", width="content")
    if here is not None and here["node"]:
        for act, text in (("accept", "Accept this cluster"), ("refuse", "Refuse it")):
            if st.button(text, key=f"{act}-here", help="Whole, without looking at each image"):
                _judge(search_id, here["id"], act)
                st.rerun()
    if st.button("Back to marking", type="tertiary"):
        session.go("isolate", search=search_id)
    if st.button("×", type="tertiary", help="Drill down without this search; it is kept"):
        active_searches.work_on("")
        st.rerun()


def _judge(search_id: str, node_id: str, act: str) -> None:
    """Accept or refuse a whole cluster for a search."""
    held = active_searches.opened(search_id, False)
    with active_searches.marking(held) as search:
        before = len(search.found())
        search.accept(node_id) if act == "accept" else search.refuse(node_id)
        active_searches.sent(())
        new = len(search.found()) - before
    session.wrote(f"search {act}", search_id, {"node": node_id})
    done = f"accepted: {images(new)} more" if act == "accept" else "refused: none of it will be shown"
    session.say(f"Cluster {escape(node_id.partition('/')[2])} {done}. Undo it on the page Isolate.")


def _breadcrumb(tree: str, path: str) -> None:
    steps = path.split(".") if path else []
    names = queries.names(tree)
    for depth in range(len(steps) + 1):
        at = ".".join(steps[:depth])
        name = escape(names.get(at, f"Cluster {at}" if at else "All"))
        if depth == len(steps):
            st.markdown(f"**{name}**", width="content")
        else:
            if st.button(name, type="tertiary", key=f"crumb-{at}"):
                session.put(at=at, view=None, open=None, sel=None)
                st.rerun()
            st.markdown("›", width="content")


def _actions(here: queries.Row, opened: bool, view: str) -> None:
    path, node_id = here["node"], here["id"]
    with st.container(horizontal=True, vertical_alignment="center", key="node-actions"):
        _breadcrumb(here["tree"], path)
        st.caption(images(here["size"]), width="content")
        st.space("stretch")
        if not opened and view != "cuts" and st.button("Split this cluster", help="Cluster its images afresh"):
            _make(node=node_id)
        _choose_view(path, opened, view)
        _more(here, opened)
        with (
            st.popover("Save as slice", type="primary" if path else "secondary"),
            st.form(f"slice-{path}", border=False),
        ):
            name = st.text_input("Name", placeholder="e.g. poly cells")
            if st.form_submit_button("Save slice", type="primary"):
                save_slice(name.strip(), cluster=node_id)


def _more(here: queries.Row, opened: bool) -> None:
    """What is done to a node now and then."""
    path, node_id = here["node"], here["id"]
    offered = ["Rename"] if path else []
    offered += ["Undo this split"] if opened and path else []
    offered += ["Find all like its centre", "Use as scope"] if path else []
    if not offered:
        return
    key = f"more-{node_id}"
    st.menu_button("More", offered, key=key, on_click=_choose, args=(key,))
    if st.session_state.get("_more", ("", ""))[0] != key:
        return
    match st.session_state.pop("_more")[1]:
        case "Rename":
            _rename(here)
        case "Undo this split":
            _undo(node_id)
        case "Find all like its centre":
            active_searches.begin(examples=list(here["medoids"])[:EXAMPLES])
        case "Use as scope":
            session.put(node=node_id, open=None, sel=None)
            st.rerun()


def _choose(key: str) -> None:
    """Keeps what was chosen until it is done: a run that another one interrupts forgets what was clicked."""
    st.session_state["_more"] = (key, st.session_state[key])


def _undo(node_id: str) -> None:
    from embeddings.clusters.trees import uncut

    uncut(session.lake(), node_id)
    session.wrote("cluster uncut", node_id, {})
    session.put(view=None, open=None, sel=None)
    st.rerun()


@st.dialog("Rename this cluster")
def _rename(here: queries.Row) -> None:
    from embeddings.clusters.trees import rename

    with st.form("rename", border=False):
        said = here["name"] or here["suggested"] or ""
        name = st.text_input("Name", said, max_chars=80, help="Empty: its number again")
        if st.form_submit_button("Rename", type="primary"):
            try:
                rename(session.lake(), here["id"], name)
            except LakeloopError as error:
                st.error(escape(str(error)))
            else:
                session.wrote("cluster rename", here["id"], {"name": name.strip()})
                st.rerun()


def _choose_view(path: str, opened: bool, view: str) -> None:
    """Cards, all images, what came when, other cuts; and the cards' order."""
    if view == "clusters":
        sort = session.param("sort") if session.param("sort") in SORTS else "size"
        chosen = _choice("Sort", SORTS, sort, 180)
        if chosen and chosen != sort:
            session.put(sort=chosen)
            st.rerun()
    offered = {one: text for one, text in VIEWS.items() if opened or one != "clusters"}
    session.switch("view", offered, view, key=f"view-{path}-{opened}", clears=["size"])


def _over_time(here: queries.Row) -> None:
    """How many answers fell into the node, and how right they were: drift, as an analyst sees it."""
    where = f"image_id IN (SELECT image_id FROM cluster_members WHERE id = {literal(here['id'])})"
    days = queries.by_day(where)
    if not days:
        return empty_states.empty(
            "No answers with a time here", "Volume and error over time need answers that say when they were given."
        )
    joined = queries.assigned(here["id"])
    note = (
        f"{images(joined['assigned'])} joined it after it was made, the last on {joined['newest']:%d %b %Y}."
        if joined["assigned"]
        else "No image was assigned to it since it was made."
    )
    st.caption(f"{note} New images join by `{for_this_lake('cluster', 'assign', '--tree', here['tree'])}`.")
    report([[charts.volume(days), charts.accuracy(days)]], key="node-time")
    return None


def _members(here: queries.Row) -> None:
    rows = queries.members(here["id"], MEMBERS_SHOWN)
    more = f" of {here['size']:,}" if here["size"] > len(rows) else ""
    image_grid(rows, "confidence", f"{images(len(rows))}{more}{_known(here)}", key="members")


def _known(here: queries.Row) -> str:
    """What the cluster's card said, to go on with the title of its images."""
    row = next((one for one in queries.children(here["tree"], here["parent"] or "") if one["id"] == here["id"]), None)
    if row is None:
        return " in this tree"
    known, kinds = row["known"] or 0, groups.make_up([here["id"]]).get(here["id"], [])
    wrong = wilson(known - (row["right"] or 0), known)
    facts = (
        [f"{share(wrong.value)} wrong ({known - row['right']} of {known} labelled, 95 % {span(wrong)})"]
        if known
        else []
    )
    facts += [f"{share(part)} {name} {value}" for name, value, part in kinds]
    return ", ".join([" in this cluster", *facts])
