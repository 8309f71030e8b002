"""jobs list, show, wait, cancel, retry, log, work: long work that runs in worker processes or in a command."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from lake.errors import BadInput, CouldNot
from search_app.cli.terminal import Add, columns, number, open_lake, output

if TYPE_CHECKING:
    from lake.jobs.job import Job

STATES = ("waiting", "running", "done", "failed", "cancelled")
LOOK_SECONDS = 0.3
BAR_PARTS = 1_000


def register(add: Add, jobs: Any) -> None:
    p = add("list", _list, "list jobs, newest first", jobs)
    p.add_argument("--state", action="append", default=[], choices=STATES, help="only jobs in this state; repeat for more")  # fmt: skip  # noqa: E501
    p.add_argument("--kind", action="append", default=[], metavar="KIND", help="only jobs of this kind; repeat for more")  # fmt: skip  # noqa: E501
    p.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (default 50)")
    for name, run, help in (
        ("show", _show, "show a job: arguments, state, progress, result"),
        ("wait", _wait, "wait for the end of a job; exit code 3 if it does not end as done"),
        ("cancel", _cancel, "cancel a job that waits or runs"),
        ("retry", _retry, "start a failed or cancelled job again; it resumes where its kind can"),
        ("log", _log, "print what the workers of a job wrote to stderr"),
    ):
        p = add(name, run, help, jobs, writes=name in ("cancel", "retry"))
        p.add_argument("job", metavar="JOB", help="the id, or the start of it")
        if name == "wait":
            p.add_argument("--timeout", type=number, metavar="SECONDS", help="wait no longer than this")
    p = add("work", _work, "start waiting jobs here until interrupted, as a server does", jobs, writes=True)
    p.add_argument("--most", type=int, default=1, metavar="N", help="at most so many jobs at once (default 1)")
    p.add_argument("--memory-gb", type=number, metavar="GB", help="memory limit of each worker process")
    p.add_argument("--idle", type=number, metavar="SECONDS", help="end when no job has waited or run for so long")


def _list(args: argparse.Namespace) -> int:
    from lake.jobs import current

    if args.limit < 1:
        raise BadInput(f"--limit is {args.limit}; it must be at least 1")
    jobs = current.list(open_lake(args), states=args.state, kinds=args.kind, limit=args.limit)
    rows = [["job", "kind", "state", "started", "by", ""]]
    rows += [
        [job.id, job.kind, job.state, f"{job.created_at:%Y-%m-%d %H:%M}", str(job.starter), job.news] for job in jobs
    ]
    none = "no jobs yet; start one with --detach, for example: lakeloop embed --detach"
    if args.state or args.kind:
        none = "no job of this kind and state"
    text = columns(rows, 6) if jobs else none
    return output(args, [job.facts() for job in jobs], text)


def _show(args: argparse.Namespace) -> int:
    from lake.jobs import current

    job = current.get(open_lake(args), args.job)
    lines = [f"job {job.id}: {job.kind}, {job.state}{_tail(job)}"]
    lines.append(f"  started    {job.created_at:%Y-%m-%d %H:%M:%S} UTC by {job.starter}, attempt {job.attempt}")
    lines += [f"  {name:<10} {json.dumps(value, ensure_ascii=False)}" for name, value in job.arguments.items()]
    if job.result is not None:
        lines.append(f"  result     {json.dumps(job.result, ensure_ascii=False)}")
    return output(args, job.facts(), "\n".join(lines))


def _wait(args: argparse.Namespace) -> int:
    from lake.jobs import current
    from search_app.jobs import supervisor

    lake = open_lake(args)
    job = current.get(lake, args.job)
    deadline = None if args.timeout is None else time.monotonic() + args.timeout
    if job.detached and not job.finished:
        supervisor.ensure(lake)
    from tqdm import tqdm

    with tqdm(total=BAR_PARTS, file=sys.stderr, leave=False, disable=not sys.stderr.isatty(), bar_format="{l_bar}{bar}| {elapsed}{postfix}") as bar:  # fmt: skip  # noqa: E501
        while not job.finished or job.may_continue:
            share = job.progress.share if job.progress else None
            bar.update(round(BAR_PARTS * (share or 0)) - bar.n)
            bar.set_postfix_str(job.news)
            if deadline is not None and time.monotonic() > deadline:
                raise CouldNot(f"job {job.id} is still {job.state} after {args.timeout:g} s")
            time.sleep(LOOK_SECONDS)
            if job.may_continue:
                supervisor.ensure(lake)  # it says what becomes of the job
            job = current.get(lake, job.id)
    if job.state != "done":
        raise CouldNot(f"job {job.id} is {job.state}{_tail(job)}")
    return output(args, job.facts(), f"job {job.id} is done: {json.dumps(job.result, ensure_ascii=False)}")


def _cancel(args: argparse.Namespace) -> int:
    from lake.access import audit
    from lake.jobs import record
    from lake.jobs.job import Starter

    lake = open_lake(args)
    job = record.cancel(lake, args.job, Starter(user=audit.os_user()))
    audit.record(lake, "job cancel", job.id, detail={"kind": job.kind})
    text = f"job {job.id} is cancelled" if job.finished else f"job {job.id} was asked to end"
    return output(args, job.facts(), text)


def _retry(args: argparse.Namespace) -> int:
    from lake.access import audit
    from lake.jobs import record
    from lake.jobs.job import Starter
    from search_app.jobs import supervisor

    lake = open_lake(args)
    job = record.retry(lake, args.job, Starter(user=audit.os_user()))
    audit.record(lake, "job retry", job.id, detail={"kind": job.kind})
    supervisor.ensure(lake)
    return output(args, job.facts(), f"job {job.id} waits for attempt {job.attempt}")


def _log(args: argparse.Namespace) -> int:
    from lake.jobs import current, live_state

    lake = open_lake(args)
    job = current.get(lake, args.job)
    log = live_state.log_file(lake, job.id)
    text = log.read_text(errors="replace").rstrip("\n") if log.exists() else ""
    return output(args, {"job": job.id, "log": text}, text or f"the workers of job {job.id} wrote nothing")


def _work(args: argparse.Namespace) -> int:
    import math
    import signal
    import threading

    from lake.jobs import live_state
    from search_app.jobs.supervisor import Supervisor

    if args.most < 1:
        raise BadInput(f"--most is {args.most}; it must be at least 1")
    if args.memory_gb is not None and not args.memory_gb > 0:
        raise BadInput(f"--memory-gb is {args.memory_gb}; it must be more than 0")
    lake = open_lake(args)
    live_state.of(lake).set_limits(args.most, args.memory_gb)
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    print("starting waiting jobs; Ctrl-C ends this, and jobs that run go on", file=sys.stderr)
    Supervisor(lake).run(stop, math.inf if args.idle is None else args.idle)
    return 0


def _tail(job: Job) -> str:
    return f" ({job.news})" if job.news else ""
