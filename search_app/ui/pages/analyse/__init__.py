"""Analyse page: worst slices, error by dimension, confusion, calibration, models compared."""

from __future__ import annotations

from search_app.ui import session
from search_app.ui.components import empty_states, scope
from search_app.ui.data import queries
from search_app.ui.pages.analyse import classes, confidence, dimensions, failures, models, over_time, sizes
from search_app.ui.text.commands import for_this_lake

VIEWS = {
    "slices": ("Worst slices", failures.show),
    "dimensions": ("By dimension", dimensions.show),
    "classes": ("Classes", classes.show),
    "confidence": ("Confidence", confidence.show),
    "sizes": ("Object sizes", sizes.show),
    "time": ("Over time", over_time.show),
    "models": ("Compare models", models.show),
}


def page() -> None:
    """The Analyse page."""
    if not queries.status(queries.stamp())["images"]:
        return empty_states.no_images()
    where = scope.where()
    totals = queries.totals(where)
    if not totals["images"]:
        return empty_states.nothing_passes()
    if not totals["predictions"]:
        command = for_this_lake("ingest", "predictions.csv")
        return empty_states.empty(
            "No predictions yet", "Ingest predictions as a table with one row per prediction.", command
        )
    chosen = session.param("view") if session.param("view") in VIEWS else "slices"
    titles = {name: title for name, (title, _) in VIEWS.items()}
    session.switch("view", titles, chosen, key="analyse-view", clears=["truth", "said", "finding"])
    return VIEWS[chosen][1](where)
