"""The map: a million points drawn by the browser, with pan, zoom, thumbnails on hover and a lasso.

Points come by URL (GET /v1/map-points/ID); only one byte a point, its colour, comes through the session. Back comes
the lasso, a polygon of at most 64 corners: which images lie inside is worked out on both sides alike, so no list of
ids travels. It knows no SQL.
"""

from __future__ import annotations

import base64
import re
from dataclasses import asdict
from importlib.resources import files

import numpy as np
import streamlit as st

from search_app.ui.components.map.colours import Colours

# The URL has whole numbers; places are in [-1, 1].
SCALE = 100_000
_LASSO = re.compile(r"-?\d{1,7}(\.-?\d{1,7}){5,127}")

_here = files("search_app.ui.components.map")
_component = st.components.v2.component(
    "lakeloop_map",
    html='<div class="map"></div>',
    css=(_here / "map.css").read_text("utf-8"),
    js="\n".join((_here / name).read_text("utf-8") for name in ("drawing.js", "map.js")),
)


def image_map(map_id: str, tag: str, colours: Colours, lasso: str, chosen: int, key: str = "map") -> str | None:
    """Show the map `map_id`, whose points have the tag `tag`; returns a new lasso ("": taken away), else None.

    `colours` has a code for each point; `lasso` is drawn, with how many images it has `chosen`.
    """
    result = _component(
        key=key,
        data={
            "map": map_id,
            "tag": tag,
            "codes": base64.b64encode(colours.codes.tobytes()).decode(),
            "legend": asdict(colours.legend),
            "lasso": lasso,
            "chosen": chosen,
        },
        on_lasso_change=lambda: None,
    )
    if result.lasso is None or "corners" not in result.lasso:  # without: only this run was asked for
        return None
    return str(result.lasso["corners"])


def corners(lasso: str) -> np.ndarray | None:
    """The corners of a lasso as the URL has it, float (n, 2); None when it is none."""
    if not _LASSO.fullmatch(lasso):
        return None
    numbers = [int(one) for one in lasso.split(".")]
    if len(numbers) % 2:
        return None
    return np.array(numbers, np.float64).reshape(-1, 2) / SCALE
