"""Models, "Is it better, everywhere?": runs and versions, what a new one does on every slice, and what is promoted."""

from __future__ import annotations

from search_app.ui import model_record, queries, session, words
from search_app.ui.views.models import family, making, run, work


def page() -> None:
    """The Models page."""
    if not queries.status(queries.stamp())["images"]:
        return words.no_images()
    known = model_record.runs()
    work.strip()
    if session.param("make") and session.may("admin"):
        return making.show()
    asked, of = session.param("run"), session.param("of")
    found = next((one for one in known if one.id == asked), None)
    if asked and found is None:
        words.empty("This run is not there", f"No run of this lake is called {words.plain(asked)}.")
        return family.back()
    if found is not None:
        return run.show(found)
    if of and not any(one.model == of for one in known):
        words.empty("This model is not there", f"No run of this lake makes a model {words.plain(of)}.")
        return family.back()
    if not known:
        return _nothing_yet()
    return family.one(of) if of else family.every()


def _nothing_yet() -> None:
    """No run was ever begun."""
    trained = [row for row in queries.slices() if row["role"] not in ("evaluation", "regression")]
    if not trained:
        return words.empty(
            "No models yet, and no slice to train on",
            "A model is trained on slices. Select images on any page and press **L**, and give what shall judge the "
            "model the role “for evaluation”.",
            words.for_this_lake("slice", "create", "NAME", "--where", "SQL", "--role", "train"),
        )
    words.empty(
        "No models yet",
        "Train one on your slices: a probe on the vectors that are there takes seconds. It is then asked about every "
        "evaluation slice, and may be promoted when it is worse nowhere.",
        words.for_this_lake("train", "--train", trained[0]["name"], "--set", "kind=probe"),
    )
    return family.train_button(centred=True)
