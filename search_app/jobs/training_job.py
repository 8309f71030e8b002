"""A training as a program: `jobs.Job("search_app.jobs.training_job", uri, {"train", "replay", ..., "recipe"})`.

`how` is what `training.launch.train` takes, the recipe as a dictionary of settings; or {"resume": RUN}. `made` is
{"run": id}. Cancelled, the run is recorded as stopped, and `resume` goes on with it.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from search_app.jobs import jobs


def _main(uri: str, how: dict[str, Any], tell: jobs.Tell) -> dict[str, Any]:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a training ends in order when it is interrupted
    try:
        return {"run": _trained(uri, how, tell)}
    except KeyboardInterrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)  # whoever started it asks how it ended
        raise


def _trained(uri: str, how: dict[str, Any], tell: jobs.Tell) -> str:
    import lake
    from training.fit import train_model
    from training.fit.distributed import Processes
    from training.registry import runs
    from training.registry.recipe import Recipe

    def progress(said: dict[str, Any]) -> None:
        # The steps are followed by the look at every split, and by what it takes to keep the model.
        tell(0.98 * said["step"] / max(1, said["steps"]), epoch=said["epoch"], epochs=said["epochs"])

    opened = lake.open(uri)
    with Processes() as processes:
        if "resume" in how:
            begun = runs.get(opened, how["resume"])
        else:
            given = how | {"recipe": Recipe.of(how["recipe"], "settings")}
            begun = train_model.begin(opened, **given)
        tell(0.0, run=begun.id)
        try:
            return train_model.go_on(opened, begun, processes=processes, progress=progress).id
        except KeyboardInterrupt:
            if runs.get(opened, begun.id).status == "running":  # a probe's fitting leaves that to whoever stops it
                runs.end(opened, begun, "stopped")
            raise


if __name__ == "__main__":
    jobs.work(_main)
