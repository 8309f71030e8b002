"""An evaluation, or a gate, as a program: `jobs.Job("search_app.jobs.evaluation_job", uri, {"run", "baseline", ...})`.

{"run"}: the run answers every evaluation and regression slice. {"run", "baseline", "margin", "protected"}: so does the
baseline, each where it has not yet, and the gate compares the two. `made` is {"evaluation": id} or {"gate": id}.
Cancelled, it goes on when the same is asked for again: answers are kept as they come.
"""

from __future__ import annotations

from typing import Any

from search_app.jobs import jobs


def _main(uri: str, how: dict[str, Any], tell: jobs.Tell) -> dict[str, Any]:
    import lake
    from training.evaluation import evaluate, gate
    from training.evaluation.gate_policy import Policy

    opened = lake.open(uri)
    if "baseline" not in how:
        found = evaluate.evaluate(opened, how["run"], progress=lambda done, every: tell(0.95 * done / every))
        return {"evaluation": found.id}
    policy = Policy(margin=how["margin"], protected=tuple(how["protected"]))
    asked = [one for one in (how["baseline"], how["run"]) if not evaluated(opened, one, policy.named())]
    for place, one in enumerate(asked):

        def progress(done: int, every: int, place: int = place) -> None:
            tell(0.9 * (place + done / every) / len(asked))

        evaluate.evaluate(opened, one, policy.named(), progress=progress)
    return {"gate": gate.gate(opened, how["run"], how["baseline"], policy).id}


def evaluated(lake: Any, run: str, names: Any = ()) -> bool:
    """Whether the run was evaluated on every slice that is judged today, and on those named."""
    from training.evaluation import evaluate
    from training.registry import runs

    known = {row["slice"] for row in runs.metrics(lake, run) if row["evaluation"] is not None}
    return known >= {one.id for one in evaluate.subjects(lake, names)}


if __name__ == "__main__":
    jobs.work(_main)
