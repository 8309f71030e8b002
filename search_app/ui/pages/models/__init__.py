"""Models, "Is it better, everywhere?": runs and versions, what a new one does on every slice, and what is promoted."""

from __future__ import annotations

from search_app.ui import session
from search_app.ui.components import empty_states
from search_app.ui.data import model_record, queries
from search_app.ui.pages.models import model_list, run, running_jobs, train_form
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.markdown import escape


def page() -> None:
    """The Models page."""
    if not queries.status(queries.stamp())["images"]:
        return empty_states.no_images()
    known = model_record.runs()
    running_jobs.strip()
    if session.param("make") and session.may("admin"):
        return train_form.show()
    asked, of = session.param("run"), session.param("of")
    found = next((one for one in known if one.id == asked), None)
    if asked and found is None:
        empty_states.empty("This run is not there", f"No run of this lake is called {escape(asked)}.")
        return model_list.back()
    if found is not None:
        return run.show(found)
    if of and not any(one.model == of for one in known):
        empty_states.empty("This model is not there", f"No run of this lake makes a model {escape(of)}.")
        return model_list.back()
    if not known:
        return _nothing_yet()
    return model_list.one(of) if of else model_list.every()


def _nothing_yet() -> None:
    """No run was ever begun."""
    trained = [row for row in queries.slices() if row["role"] not in ("evaluation", "regression")]
    if not trained:
        return empty_states.empty(
            "No models yet, and no slice to train on",
            "A model is trained on slices. Select images on any page and press **L**, and give what shall judge the "
            "model the role “for evaluation”.",
            for_this_lake("slice", "create", "NAME", "--where", "SQL", "--role", "train"),
        )
    empty_states.empty(
        "No models yet",
        "Train one on your slices: a probe on the vectors that are there takes seconds. It is then asked about every "
        "evaluation slice, and may be promoted when it is worse nowhere.",
        for_this_lake("train", "--train", trained[0]["name"], "--set", "kind=probe"),
    )
    return model_list.train_button(centred=True)
