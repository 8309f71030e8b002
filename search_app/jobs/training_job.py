"""Trains a model: `jobs.Job("search_app.jobs.training_job", uri, {"train", "replay", ..., "recipe"})`.

The parameters are those of `train_model.begin`, with the recipe as a dictionary of settings, or {"resume": RUN}. The
result is {"run": id}. A cancelled run is recorded as stopped, and {"resume": RUN} continues it.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from search_app.jobs import jobs


def _main(uri: str, parameters: dict[str, Any], progress: jobs.ReportProgress) -> dict[str, Any]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an interrupted training records how it ended
    try:
        return {"run": _trained(uri, parameters, progress)}
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)  # so that the parent sees the exit code of a cancelled job
        raise


def _trained(uri: str, parameters: dict[str, Any], progress: jobs.ReportProgress) -> str:
    import lake
    from training.fit import train_model
    from training.fit.distributed import Processes
    from training.registry import runs
    from training.registry.recipe import Recipe

    def count(state: dict[str, Any]) -> None:
        # The last 2 % are for evaluating every split and for saving the model.
        progress(0.98 * state["step"] / max(1, state["steps"]), epoch=state["epoch"], epochs=state["epochs"])

    opened = lake.open(uri)
    with Processes() as processes:
        if "resume" in parameters:
            run = runs.get(opened, parameters["resume"])
        else:
            recipe = Recipe.of(parameters["recipe"], "settings")
            run = train_model.begin(opened, **(parameters | {"recipe": recipe}))
        progress(0.0, run=run.id)
        try:
            return train_model.go_on(opened, run, processes=processes, progress=count).id
        except KeyboardInterrupt:
            if runs.get(opened, run.id).status == "running":  # the fit of a probe does not record it
                runs.end(opened, run, "stopped")
            raise


if __name__ == "__main__":
    jobs.work(_main)
