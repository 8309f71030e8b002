"""Evaluates a run or runs a gate: `jobs.Job("search_app.jobs.evaluation_job", uri, {"run", "baseline", ...})`.

{"run"}: evaluates the run on every evaluation and regression slice. {"run", "baseline", "margin", "protected"}:
evaluates both runs where they are not evaluated yet, then the gate compares them. The result is {"evaluation": id} or
{"gate": id}. A cancelled job resumes when you start it again with the same parameters: predictions are stored as they
are made.
"""

from __future__ import annotations

from typing import Any

from search_app.jobs import jobs


def _main(uri: str, parameters: dict[str, Any], progress: jobs.ReportProgress) -> dict[str, Any]:
    import lake
    from training.evaluation import evaluate, gate
    from training.evaluation.gate_policy import GatePolicy

    opened = lake.open(uri)
    run, baseline = parameters["run"], parameters.get("baseline")
    if baseline is None:
        evaluation = evaluate.evaluate(opened, run, progress=lambda done, total: progress(0.95 * done / total))
        return {"evaluation": evaluation.id}
    policy = GatePolicy(margin=parameters["margin"], protected=tuple(parameters["protected"]))
    missing = [name for name in (baseline, run) if not evaluated(opened, name, policy.named())]
    for index, name in enumerate(missing):

        def count(done: int, total: int, index: int = index) -> None:
            progress(0.9 * (index + done / total) / len(missing))

        evaluate.evaluate(opened, name, policy.named(), progress=count)
    return {"gate": gate.gate(opened, run, baseline, policy).id}


def evaluated(lake: Any, run: str, names: Any = ()) -> bool:
    """Whether the run is evaluated on every evaluation and regression slice of today, and on the slices `names`."""
    from training.evaluation import evaluate
    from training.registry import runs

    measured = {row["slice"] for row in runs.metrics(lake, run) if row["evaluation"] is not None}
    return measured >= {slice_.id for slice_ in evaluate.slices_of(lake, names)}


if __name__ == "__main__":
    jobs.work(_main)
