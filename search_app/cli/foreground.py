"""Runs the job of a command: here, with a progress bar and recorded, or in a worker process with --detach."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from search_app.cli.terminal import output

if TYPE_CHECKING:
    from lake.jobs.live_state import Progress
    from lake.storage.store import Lake

    Display = Callable[[Progress], None]


def add_detach(p: argparse.ArgumentParser) -> None:
    """The option --detach of a command whose work is a job."""
    p.add_argument("--detach", action="store_true", help="start it in a worker process, print the job's id and return")


def run_job(
    args: argparse.Namespace, lake: Lake, kind: str, arguments: Mapping[str, Any], display: Display | None = None
) -> Any | None:
    """Does the work of the kind now and returns the library's report; with --detach, starts it and returns None.

    Without `display`, a terminal shows a bar. Raises BadInput for bad arguments, and what the work raises.
    """
    from lake.jobs.job import Starter
    from search_app.jobs import kinds

    if args.detach:
        from lake.access import audit
        from search_app.jobs import starting

        job = starting.start(lake, kind, arguments, Starter(user=audit.os_user()), local=True)
        text = f"job {job.id} started; watch it with: lakeloop jobs wait {job.id} --lake {lake.uri}"
        output(args, {"job": job.id, "kind": kind}, text)
        return None
    chosen = kinds.get(kind)
    checked = chosen.checked(lake, arguments, local=True)
    if display is not None:
        return _run(lake, chosen, checked, display)
    with _bar() as bar:
        return _run(lake, chosen, checked, bar)


def _run(lake: Lake, kind: Any, arguments: Mapping[str, Any], display: Display) -> Any:
    from lake.access import audit
    from lake.jobs import running_job
    from lake.jobs.job import Starter

    if os.environ.get("RANK", "0") != "0":  # one of several processes of a training: the first one records it
        return kind.run(lake, arguments, running_job.Work(lake, Starter(user=audit.os_user()), display))
    try:
        job = running_job.foreground(lake, kind.name, arguments, display)
        job.begin()
    except OSError as error:  # a lake that can only be read can still be searched
        reason = "the lake can only be read" if audit.is_read_only(error) else str(error)
        print(f"lakeloop: this job is not recorded: {reason}", file=sys.stderr)
        return kind.run(lake, arguments, running_job.Work(lake, Starter(user=audit.os_user()), display))
    with job:
        report = kind.run(lake, arguments, job)
        job.result = kind.result(report)
    return report


@contextmanager
def _bar() -> Iterator[Display]:
    """A bar on stderr if it is a terminal."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from tqdm import tqdm

    with tqdm(file=sys.stderr, leave=False) as bar:

        def show(progress: Progress) -> None:
            bar.total, bar.unit = progress.total, f" {progress.unit}"
            if progress.stage:
                bar.set_description_str(progress.stage, refresh=False)
            bar.update(progress.done - bar.n)

        yield show
