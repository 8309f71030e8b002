"""Models page: runs and versions, their metrics on every slice, gate verdicts, and promotion."""

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
    run_id, model = session.param("run"), session.param("of")
    selected = next((record for record in known if record.id == run_id), None)
    if run_id and selected is None:
        empty_states.empty("Run not found", f"This lake has no run {escape(run_id)}.")
        return model_list.back()
    if selected is not None:
        return run.show(selected)
    if model and not any(record.model == model for record in known):
        empty_states.empty("Model not found", f"This lake has no model {escape(model)}.")
        return model_list.back()
    if not known:
        return _nothing_yet()
    return model_list.show_model(model) if model else model_list.show_list()


def _nothing_yet() -> None:
    """The lake has no run yet."""
    trainable = [row for row in queries.slices() if row["role"] not in ("evaluation", "regression")]
    if not trainable:
        return empty_states.empty(
            "No models yet, and no slice to train on",
            "A model is trained on slices. Select images on any page and press **L** to save a slice. Give slices for "
            "measuring the model the role “for evaluation”.",
            for_this_lake("slice", "create", "NAME", "--where", "SQL", "--role", "train"),
        )
    empty_states.empty(
        "No models yet",
        "Train one on your slices: a probe on the stored vectors takes seconds. Then evaluate it on every evaluation "
        "slice, and promote it if no slice became worse.",
        for_this_lake("train", "--train", trainable[0]["name"], "--set", "kind=probe"),
    )
    return model_list.train_button(centred=True)
