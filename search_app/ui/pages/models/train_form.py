"""The form of a training: which slices, at which speed, from where; and the command that does the same."""

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

SPEEDS = {"probe": "Probe: seconds", "finetune": "Fine-tune: minutes to hours"}
WHY = {
    "probe": "A linear model on the vectors that the lake has. The baseline that anything slower has to beat.",
    "finetune": "The network itself learns, from the images. Stopped, it goes on where it was.",
}
# What is offered first; any other that the task knows can be typed.
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
            "Select images on any page and press **L**, or save what the filters show on the page **Slices**.",
            for_this_lake("slice", "create", "NAME", "--where", "SQL", "--role", "train"),
        )
    newest = _newest(known)
    left, right = st.columns([3, 2], gap="large")
    with left:
        how, recipe = _asked(newest)
    with right:
        _beside(how, recipe, newest)
    return None


def _newest(known: list[queries.Row]) -> dict[str, queries.Row]:
    """The newest version of each slice by its id, those for training first."""
    found: dict[str, queries.Row] = {}
    for row in known:
        if row["name"] not in {one["name"] for one in found.values()}:
            found[row["id"]] = row
    return dict(sorted(found.items(), key=lambda one: one[1]["role"] != "train"))


def _asked(newest: dict[str, queries.Row]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `training.launch.begin` takes, and the settings that are not as usual."""
    open_ones = [one for one, row in newest.items() if row["role"] not in ("evaluation", "regression")]
    usual = [one for one in open_ones if newest[one]["role"] == "train"]
    name_of = lambda one: f"{one.replace('@', ' v')} · {count(newest[one]['size'])}"  # noqa: E731
    train = st.multiselect("Train on", open_ones, usual[:6], format_func=name_of, key="make-train")
    speed = st.segmented_control(
        "How", list(SPEEDS), default="probe", format_func=SPEEDS.__getitem__, required=True, key="make-speed"
    )
    st.caption(WHY[speed])
    one, two = st.columns(2)
    model = one.text_input("Model", _usual_name(), help="Its runs are versions of one model", key="make-model")
    recipe: dict[str, Any] = {"kind": speed}
    before = [run for run in model_record.runs() if run.status == "done" and run.kind == speed]
    parent = two.selectbox(
        "Begin from",
        [START, *(run.id for run in before)],
        format_func=lambda r: _start(r, speed),
        key=f"make-from-{speed}",
    )
    if speed == "finetune":
        one, two, three = st.columns(3)
        task = one.selectbox("Task", list(NETWORKS), key="make-task")
        recipe["task"] = task
        recipe["epochs"] = int(two.number_input("Epochs", 1, 1000, 10, key="make-epochs"))
        if parent == START:
            recipe["architecture"] = three.selectbox(
                "Network", NETWORKS[task], accept_new_options=True, key=f"make-{task}", help="Or type another's name"
            )
    else:
        embedders = [row["name"] for row in queries.status(queries.stamp())["embedders"] if row["embedded"]]
        if len(embedders) > 1:
            recipe["embedder"] = st.selectbox("Vectors of", embedders, key="make-embedder")
    one_class = recipe.get("task", "classification") == "classification"
    help = "For classes of very unequal size"
    if one_class and st.checkbox("Let every class weigh the same", key="make-balance", help=help):
        recipe["balance"] = "weights"
    others = [one for one in open_ones if one not in train]
    with st.expander("Replay, validation, test and other settings"):
        replay = st.multiselect("Replay older slices", others, format_func=name_of, key="make-replay",
                                help="Some of their images are shown again, against forgetting")  # fmt: skip
        held = st.multiselect("Choose the best epoch by", others, format_func=name_of, key="make-validation",
                              help="Without one: 15 % of the training images, chosen by hash")  # fmt: skip
        test = st.multiselect("Measure once at the end on", others, format_func=name_of, key="make-test")
        text = st.text_area(
            "Other settings", placeholder="rate=0.0005\nwise_ft=0.8", height=90, key="make-settings",
            help="One KEY=VALUE a line; docs/training.md has them all",
        )  # fmt: skip
    how = {
        "train": train, "replay": replay, "validation": held, "test": test, "name": model.strip(),
        "parent": None if parent == START else parent,
    }  # fmt: skip
    return how, recipe | {"_lines": [line.strip() for line in text.splitlines() if line.strip()]}


def _beside(how: dict[str, Any], settings: dict[str, Any], newest: dict[str, queries.Row]) -> None:
    """What will happen, and the button."""
    judged = [row["name"] for row in newest.values() if row["role"] in ("evaluation", "regression")]
    lines = settings.pop("_lines")
    total = sum(newest[one]["size"] for one in how["train"])
    some = len(how["train"])
    st.markdown(f"**{images(total)}** in {some} slice{'' if some == 1 else 's'}, of which the labelled ones count.")
    if judged:
        st.markdown(
            f"Left out: what {_listed(judged)} {'has' if len(judged) == 1 else 'have'}, near-duplicates too. There it "
            "is judged afterwards."
        )
    else:
        st.markdown("No slice is for evaluation yet: nothing will say how good it is elsewhere.")
    if st.button("Train", type="primary", disabled=not how["train"] or not how["name"], key="make-train-now"):
        _begin(how, settings, lines)
    st.caption("The same on the command line")
    st.code(_command(how, settings, lines), language="bash", wrap_lines=True)


def _begin(how: dict[str, Any], settings: dict[str, Any], lines: list[str]) -> None:
    from dataclasses import asdict

    from training.registry.recipe import Recipe

    try:
        recipe = Recipe.of(settings, "settings").with_words(lines)
    except LakeloopError as error:
        st.error(escape(str(error).replace("--set ", "")))
        return
    running_jobs.begin(f"Training {how['name']}", "training_job", how | {"recipe": asdict(recipe)})
    session.wrote("train", how["name"], {"train": how["train"], "replay": how["replay"], "kind": recipe.kind})
    session.put(make=None, of=how["name"] if any(r.model == how["name"] for r in model_record.runs()) else None)
    st.rerun()


def _command(how: dict[str, Any], settings: dict[str, Any], lines: list[str]) -> str:
    said: list[str] = []
    for use in ("train", "replay", "validation", "test"):
        for one in how[use]:
            said += [f"--{use}", one]
    said += ["--model", shlex.quote(how["name"] or "NAME")]
    said += ["--from", how["parent"]] if how["parent"] else []
    for key, value in settings.items():
        said += ["--set", shlex.quote(f"{key}={value}")]
    for line in lines:
        said += ["--set", shlex.quote(line)]
    return for_this_lake("train", *said)


def _usual_name() -> str:
    asked = session.param("of")
    return asked or next((run.model for run in model_record.runs()), "model")


def _start(name: str, speed: str) -> str:
    if name == START:
        return START if speed == "finetune" else "nothing"
    return run_name(name)


def _listed(names: list[str]) -> str:
    shown = [escape(one) for one in names[:4]]
    shown += [f"{len(names) - 4} more"] if len(names) > 4 else []
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _leave() -> None:
    session.put(make=None)
    st.rerun()
