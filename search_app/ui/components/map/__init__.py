"""The map: up to a million points drawn by the browser, with zoom, thumbnails and a lasso.

The browser fetches the points by URL (GET /v1/map-points/ID); the session sends one byte per point, its colour. The
browser returns the lasso, a polygon of at most 64 corners. Both sides compute which images lie inside in the same way,
so no list of ids is sent. It knows no SQL.
"""

from __future__ import annotations

import base64
import re
from dataclasses import asdict
from importlib.resources import files

import numpy as np
import streamlit as st

from search_app.ui.components.map.colours import Colours

# The URL has whole numbers; positions are in [-1, 1].
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
    """Shows the map `map_id`, whose points have the tag `tag`. Returns a new lasso ("": cleared), else None.

    `colours` has a code for each point. `lasso` is drawn, with the number of images inside it, `chosen`.
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
    if result.lasso is None or "corners" not in result.lasso:  # without corners: the browser only requested a rerun
        return None
    return str(result.lasso["corners"])


def corners(lasso: str) -> np.ndarray | None:
    """The corners of a lasso from the URL, float64 (n, 2); None if it is not a valid lasso."""
    if not _LASSO.fullmatch(lasso):
        return None
    numbers = [int(number) for number in lasso.split(".")]
    if len(numbers) % 2:
        return None
    return np.array(numbers, np.float64).reshape(-1, 2) / SCALE
