"""Analyse, "Where does it fail?": slices that fail, found unprompted, and how right the answers are by anything."""

from __future__ import annotations

from search_app.ui import queries, scope, session, words
from search_app.ui.views.analyse import classes, confidence, course, dimensions, failing, models, sizes

VIEWS = {
    "slices": ("Worst slices", failing.show),
    "dimensions": ("By dimension", dimensions.show),
    "classes": ("Classes", classes.show),
    "confidence": ("Confidence", confidence.show),
    "sizes": ("Object sizes", sizes.show),
    "time": ("Over time", course.show),
    "models": ("Model against model", models.show),
}


def page() -> None:
    """The Analyse page."""
    if not queries.status(queries.stamp())["images"]:
        return words.no_images()
    where = scope.current().where()
    totals = queries.totals(where)
    if not totals["images"]:
        return words.nothing_passes()
    if not totals["answers"]:
        command = words.for_this_lake("ingest", "predictions.csv")
        return words.empty("No model has answered here", "Bring its answers in as a table, one row an answer.", command)
    chosen = session.param("view") if session.param("view") in VIEWS else "slices"
    titles = {one: title for one, (title, _) in VIEWS.items()}
    session.switch("view", titles, chosen, key="analyse-view", clears=["truth", "said", "finding"])
    return VIEWS[chosen][1](where)
