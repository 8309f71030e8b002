"""The script that Streamlit runs at every interaction: navigation, scope bar, and the selected page."""

import logging
from pathlib import Path

import streamlit as st

from lake.errors import LakeloopError
from search_app.security import login
from search_app.ui import session
from search_app.ui.components.job_corner import job_corner
from search_app.ui.components.scope import scope_bar
from search_app.ui.pages import analyse, drilldown, isolate, map, models, overview, search, slices, sql
from search_app.ui.text.markdown import escape

_log = logging.getLogger(__name__)
LOGO = str(Path(__file__).with_name("logo.svg"))
FRAME = Path(__file__).with_name("frame.css")

st.set_page_config(page_title="lakeloop", page_icon=LOGO, layout="wide")
st.logo(LOGO, size="medium")
st.html(FRAME)

pages = {
    "overview": st.Page(overview.page, title="Overview", url_path="overview", default=True),
    "search": st.Page(search.page, title="Search", url_path="search"),
    "drilldown": st.Page(drilldown.page, title="Drill-down", url_path="drilldown"),
    "isolate": st.Page(isolate.page, title="Isolate", url_path="isolate"),
    "map": st.Page(map.page, title="Map", url_path="map"),
    "slices": st.Page(slices.page, title="Slices", url_path="slices"),
    "sql": st.Page(sql.page, title="SQL", url_path="sql"),
    "analyse": st.Page(analyse.page, title="Analyse", url_path="analyse"),
    "models": st.Page(models.page, title="Models", url_path="models"),
}
st.session_state["_pages"] = pages
chosen = st.navigation(list(pages.values()), position="top")
name = chosen.url_path or "overview"

session.remember(name)
if message := session.message():
    st.toast(message, duration="long")
try:
    if scope_bar():
        chosen.run()
except LakeloopError as error:
    st.error(escape(str(error)))
except Exception:
    _log.exception("the page %s failed", name)
    st.error("This page failed. The server's log has the reason. Reload the page to try again.")
session.save(name)
job_corner()
if login.cookie_name(session.lake().uri) in st.context.cookies or st.user.get("is_logged_in"):
    st.html('<p style="text-align: right"><small><a href="/logout">Log out</a></small></p>')
