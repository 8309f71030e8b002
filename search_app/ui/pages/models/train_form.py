"""The form that starts a training: slices, kind, start, settings; and the same as a command."""

from __future__ import annotations

import shlex
from typing import Any

import streamlit as st

from lake.errors import LakeloopError
from search_app.ui import session
from search_app.ui.components import empty_states
from search_app.ui.data import model_record, queries
from search_app.ui.pages.models import running_jobs
from search_app.ui.pages.models.changes import run_name
from search_app.ui.text.commands import for_this_lake
from search_app.ui.text.markdown import escape
from search_app.ui.text.numbers import count, images

KINDS = {"probe": "Probe: seconds", "finetune": "Fine-tune: minutes to hours"}
EXPLANATIONS = {
    "probe": "A linear model on the stored vectors. A fine-tuned network should be better than this baseline.",
    "finetune": "Trains the network on the images. You can stop and resume it.",
}
# Suggested networks. Users can type any other that the task supports.
NETWORKS = {
    "classification": ("efficientnet-lite0", "resnet18", "resnet34", "resnet50", "clip-vit-b-32"),
    "segmentation": ("unet-lite0",),
    "detection": ("centernet-lite0",),
}
START = "pretrained weights"


def show() -> None:
    """The form, as a page of its own."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Back", type="tertiary"):
            _leave()
        st.markdown("› **Train a model**", width="content")
    known = queries.slices()
    if not known:
        return empty_states.empty(
            "No slice to train on",
            "Select images on any page and press **L**, or save filtered images on the page **Slices**.",
            for_this_lake("slice", "create", "NAME", "--where", "SQL", "--role", "train"),
        )
    newest = _newest(known)
    left, right = st.columns([3, 2], gap="large")
    with left:
        parameters, recipe = _fields(newest)
    with right:
        _summary(parameters, recipe, newest)
    return None


def _newest(known: list[queries.Row]) -> dict[str, queries.Row]:
    """The newest version of each slice by its id, training slices first."""
    newest: dict[str, queries.Row] = {}
    for row in known:
        if row["name"] not in {other["name"] for other in newest.values()}:
            newest[row["id"]] = row
    return dict(sorted(newest.items(), key=lambda item: item[1]["role"] != "train"))


def _fields(newest: dict[str, queries.Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the form: the parameters of the training job, and the settings that differ from the defaults."""
    trainable = [id for id, row in newest.items() if row["role"] not in ("evaluation", "regression")]
    default = [id for id in trainable if newest[id]["role"] == "train"]
    name_of = lambda id: f"{id.replace('@', ' v')} · {count(newest[id]['size'])}"  # noqa: E731
    train = st.multiselect("Train on", trainable, default[:6], format_func=name_of, key="make-train")
    kind = st.segmented_control(
        "Kind", list(KINDS), default="probe", format_func=KINDS.__getitem__, required=True, key="make-speed"
    )
    st.caption(EXPLANATIONS[kind])
    left, right = st.columns(2)
    model = left.text_input("Model", _default_name(), help="The name of the model", key="make-model")
    recipe: dict[str, Any] = {"kind": kind}
    earlier = [run for run in model_record.runs() if run.status == "done" and run.kind == kind]
    parent = right.selectbox(
        "Start from",
        [START, *(run.id for run in earlier)],
        format_func=lambda id: _start(id, kind),
        key=f"make-from-{kind}",
    )
    if kind == "finetune":
        left, middle, right = st.columns(3)
        task = left.selectbox("Task", list(NETWORKS), key="make-task")
        recipe["task"] = task
        recipe["epochs"] = int(middle.number_input("Epochs", 1, 1000, 10, key="make-epochs"))
        if parent == START:
            recipe["architecture"] = right.selectbox(
                "Network", NETWORKS[task], accept_new_options=True, key=f"make-{task}", help="Or type another name"
            )
    else:
        embedders = [row["name"] for row in queries.status(queries.stamp())["embedders"] if row["embedded"]]
        if len(embedders) > 1:
            recipe["embedder"] = st.selectbox("Embedder", embedders, key="make-embedder")
    is_classification = recipe.get("task", "classification") == "classification"
    help = "For classes of very different size"
    if is_classification and st.checkbox("Give every class the same weight", key="make-balance", help=help):
        recipe["balance"] = "weights"
    others = [id for id in trainable if id not in train]
    with st.expander("Replay, validation, test and other settings"):
        replay = st.multiselect("Replay older slices", others, format_func=name_of, key="make-replay",
                                help="Some of their images are used again, to prevent forgetting")  # fmt: skip
        validation = st.multiselect("Validation slices", others, format_func=name_of, key="make-validation",
                              help="They select the best epoch. Default: 15 % of the training images")  # fmt: skip
        test = st.multiselect("Test slices (measured once at the end)", others, format_func=name_of, key="make-test")
        text = st.text_area(
            "Other settings", placeholder="rate=0.0005\nwise_ft=0.8", height=90, key="make-settings",
            help="One KEY=VALUE per line. docs/training.md lists all settings",
        )  # fmt: skip
    parameters = {
        "train": train, "replay": replay, "validation": validation, "test": test, "name": model.strip(),
        "parent": None if parent == START else parent,
    }  # fmt: skip
    return parameters, recipe | {"_lines": [line.strip() for line in text.splitlines() if line.strip()]}


def _summary(parameters: dict[str, Any], settings: dict[str, Any], newest: dict[str, queries.Row]) -> None:
    """What the training will use, and the button that starts it."""
    evaluation = [row["name"] for row in newest.values() if row["role"] in ("evaluation", "regression")]
    lines = settings.pop("_lines")
    total = sum(newest[id]["size"] for id in parameters["train"])
    number = len(parameters["train"])
    st.markdown(
        f"**{images(total)}** in {number} slice{'' if number == 1 else 's'}. Images without a label are not used."
    )
    if evaluation:
        st.markdown(
            f"Images and near-duplicates of images in {_listed(evaluation)} are not used. They evaluate the run."
        )
    else:
        st.markdown("There is no evaluation slice yet, so the run cannot be evaluated on images it has not seen.")
    if st.button(
        "Train", type="primary", disabled=not parameters["train"] or not parameters["name"], key="make-train-now"
    ):
        _begin(parameters, settings, lines)
    st.caption("The same on the command line")
    st.code(_command(parameters, settings, lines), language="bash", wrap_lines=True)


def _begin(parameters: dict[str, Any], settings: dict[str, Any], lines: list[str]) -> None:
    import json

    from training.registry.recipe import Recipe

    try:
        recipe = Recipe.of(settings, "settings").with_words(lines)
    except LakeloopError as error:
        st.error(escape(str(error).replace("--set ", "")))
        return
    if running_jobs.begin("train", parameters | {"recipe": json.loads(recipe.json())}):
        name = parameters["name"]
        session.put(make=None, of=name if any(run.model == name for run in model_record.runs()) else None)
        st.rerun()


def _command(parameters: dict[str, Any], settings: dict[str, Any], lines: list[str]) -> str:
    arguments: list[str] = []
    for use in ("train", "replay", "validation", "test"):
        for id in parameters[use]:
            arguments += [f"--{use}", id]
    arguments += ["--model", shlex.quote(parameters["name"] or "NAME")]
    arguments += ["--from", parameters["parent"]] if parameters["parent"] else []
    for key, value in settings.items():
        arguments += ["--set", shlex.quote(f"{key}={value}")]
    for line in lines:
        arguments += ["--set", shlex.quote(line)]
    return for_this_lake("train", *arguments)


def _default_name() -> str:
    return session.param("of") or next((run.model for run in model_record.runs()), "model")


def _start(id: str, kind: str) -> str:
    if id == START:
        return START if kind == "finetune" else "nothing"
    return run_name(id)


def _listed(names: list[str]) -> str:
    shown = [escape(name) for name in names[:4]]
    shown += [f"{len(names) - 4} more"] if len(names) > 4 else []
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _leave() -> None:
    session.put(make=None)
    st.rerun()
